#!/usr/bin/env bash
# Find a Java runtime that Spark 4 takes (17 or newer); install one through apt where the user may; else say what to do.
set -euo pipefail

needed=17

java_version() {
  local java=${JAVA_HOME:+$JAVA_HOME/bin/}java
  "$java" -version 2>&1 | sed -nE 's/.*version "([0-9]+).*/\1/p' | head -n 1 || true
}

enough() {
  local version
  version=$(java_version)
  [ -n "$version" ] && [ "$version" -ge "$needed" ]
}

if enough; then exit 0; fi

help="install a Java runtime, version $needed or newer (Debian, Ubuntu: apt-get install default-jre-headless;
  macOS: brew install openjdk@$needed; Fedora: dnf install java-latest-openjdk-headless), or set JAVA_HOME to one"

as_root=
if [ "$(id -u)" -ne 0 ]; then as_root="sudo -n"; fi
if [ -n "${JAVA_HOME:-}" ]; then
  echo "error: JAVA_HOME=$JAVA_HOME holds no Java $needed or newer; unset it, or $help" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null || { [ -n "$as_root" ] && ! $as_root true 2>/dev/null; }; then
  echo "error: no Java $needed or newer was found; $help" >&2
  exit 1
fi
echo "setup: installing a Java runtime through apt"
$as_root apt-get update -qq
for package in openjdk-17-jre-headless openjdk-21-jre-headless default-jre-headless; do
  if apt-cache show "$package" >/dev/null 2>&1 &&
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" &&
    enough; then
    exit 0
  fi
done
echo "error: apt offers no Java $needed or newer; $help" >&2
exit 1
