#!/bin/sh
# The documents of the Debian package, laid out as in a checkout: hints name docs/operations.md, and links stay as they are.
#
#   scripts/package/documents.sh DOC     into DOC, a folder that is there: README.md and docs/
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
cp -R docs "$1/docs"
rm "$1/docs/architecture.md" "$1/docs/lab.md" # of sources, of scripts
sed -f "$here/readme.sed" README.md > "$1/README.md"
