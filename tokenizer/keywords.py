"""The keywords of the main languages, and the names that are always there and commonest in their code."""

import builtins
import keyword

# Errors and rare names of Python are left out: what remains is what programs are made of.
_RARE = {
    "copyright",
    "credits",
    "license",
    "exit",
    "quit",
    "help",
    "breakpoint",
    "memoryview",
    "aiter",
    "anext",
    "ascii",
}
_PYTHON = sorted(
    name
    for name, value in vars(builtins).items()
    if callable(value) and name.islower() and not name.startswith("_") and name not in _RARE
)

# By language, as spark_jobs/sources/languages spells it: keywords, and builtins.
_WORDS = {
    "Python": (" ".join(keyword.kwlist), " ".join([*_PYTHON, "self", "cls", "ValueError", "TypeError", "__init__"])),
    "JavaScript": (
        "async await break case catch class const continue debugger default delete do else export extends "
        "finally for function if import in instanceof let new return static super switch this throw try "
        "typeof var void while yield",
        "Array Object String Number Math JSON Promise Map Set Date Error console document window undefined "
        "null true false require module exports length push map filter forEach parseInt log",
    ),
    "TypeScript": (
        "abstract any as async await boolean break case catch class const continue declare default else enum "
        "export extends finally for from function if implements import in interface keyof let namespace never "
        "new null number private protected public readonly return static string super switch this throw try "
        "type typeof undefined unknown void while",
        "Array Record Partial Promise Map Set Date Error console JSON Math Object length push map filter",
    ),
    "Java": (
        "abstract assert boolean break byte case catch char class const continue default do double else enum "
        "extends final finally float for if implements import instanceof int interface long native new "
        "package private protected public return short static super switch synchronized this throw throws "
        "transient try void volatile while",
        "String Object Integer List Map Set ArrayList HashMap Exception System Override Math Boolean Long "
        "println null true false equals toString hashCode",
    ),
    "C": (
        "auto break case char const continue default do double else enum extern float for goto if inline int "
        "long register return short signed sizeof static struct switch typedef union unsigned void volatile "
        "while",
        "NULL printf malloc free memcpy memset strlen strcmp size_t uint8_t uint32_t int32_t uint64_t bool "
        "true false include define ifdef ifndef endif main assert FILE",
    ),
    "C++": (
        "alignas auto bool break case catch char class const constexpr continue default delete do double else "
        "enum explicit extern false float for friend if inline int long mutable namespace new noexcept "
        "nullptr operator private protected public return short signed sizeof static struct switch template "
        "this throw true try typedef typename union unsigned using virtual void volatile while override final",
        "std string vector map size_t cout endl unique_ptr shared_ptr pair begin end push_back include define",
    ),
    "C#": (
        "abstract as async await base bool break byte case catch char class const continue decimal default "
        "delegate do double else enum event explicit false finally float for foreach get if in int interface "
        "internal is lock long namespace new null object out override params private protected public "
        "readonly ref return sealed set static string struct switch this throw true try typeof uint using var "
        "virtual void while",
        "Console List Dictionary Task Exception String WriteLine IEnumerable Linq System",
    ),
    "Go": (
        "break case chan const continue default defer else fallthrough for func go goto if import interface "
        "map package range return select struct switch type var",
        "append bool byte cap close copy delete error false float64 int int64 len make new nil panic print "
        "println recover rune string true uint32 uint64 fmt err",
    ),
    "Rust": (
        "as async await break const continue crate dyn else enum extern false fn for if impl in let loop "
        "match mod move mut pub ref return self Self static struct super trait true type unsafe use where "
        "while",
        "Option Some None Result Ok Err String Vec Box Rc Arc usize u8 u32 u64 i32 i64 f64 bool str println "
        "unwrap clone derive Debug",
    ),
    "Ruby": (
        "alias and begin break case class def defined do else elsif end ensure false for if in module next "
        "nil not or redo rescue retry return self super then true undef unless until when while yield",
        "puts require attr_accessor attr_reader each map initialize new raise include extend private",
    ),
    "PHP": (
        "abstract and array as break case catch class clone const continue declare default do echo else "
        "elseif empty extends final finally fn for foreach function global if implements include instanceof "
        "interface isset namespace new null or private protected public require return static switch throw "
        "trait try unset use var while",
        "count strlen implode explode in_array is_array array_map array_merge sprintf this string int bool true false",
    ),
    "Shell": (
        "if then elif else fi case esac for while until do done in function return local export readonly",
        "echo cd exit set test printf read shift source eval exec trap unset cat grep sed awk mkdir rm bash",
    ),
    "SQL": (
        "SELECT FROM WHERE INSERT INTO VALUES UPDATE SET DELETE CREATE TABLE ALTER DROP INDEX VIEW JOIN LEFT "
        "INNER ON AS AND OR NOT NULL IN IS LIKE ORDER BY GROUP HAVING LIMIT UNION DISTINCT PRIMARY KEY "
        "FOREIGN REFERENCES DEFAULT",
        "COUNT SUM AVG MIN MAX INT INTEGER VARCHAR TEXT DATE TIMESTAMP BOOLEAN",
    ),
    "Kotlin": (
        "as break class continue do else false for fun if in interface is null object package return super "
        "this throw true try typealias val var when while by companion data enum import init internal "
        "lateinit open override private protected public sealed suspend",
        "String Int Boolean Long List Map Set listOf mapOf println let apply also Unit Any",
    ),
    "Swift": (
        "associatedtype class deinit enum extension fileprivate func import init inout internal let open "
        "operator private protocol public static struct subscript typealias var break case continue default "
        "defer do else fallthrough for guard if in repeat return switch where while as catch false is nil "
        "self Self super throw throws true try",
        "String Int Bool Double Array Dictionary Set Optional print count append map filter",
    ),
    "Lua": (
        "and break do else elseif end false for function goto if in local nil not or repeat return then true "
        "until while",
        "print pairs ipairs require table string math type tostring tonumber setmetatable self insert",
    ),
    "HTML": (
        "html head body title meta link script style div span class href src img table tr td th ul li a p h1 "
        "h2 form input button label select option",
        "DOCTYPE charset width height type value name id onclick rel stylesheet",
    ),
    "CSS": (
        "color background margin padding border width height display position font float left right top "
        "bottom none auto solid important",
        "px em rem hover before after flex grid inline block absolute relative center bold",
    ),
}

KEYWORDS = {language: tuple(words.split()) for language, (words, _) in _WORDS.items()}
BUILTINS = {language: tuple(words.split()) for language, (_, words) in _WORDS.items()}
