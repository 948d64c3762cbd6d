"""The command line: parser.py has every option, one file per command runs it."""
