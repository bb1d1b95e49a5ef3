"""What report and explain tell: reading a workspace, bounded figures, checks, drawings, one file's story."""
