#!/bin/sh
set -e
rm -rf build
mkdir build
cp -r src/wordfreq build/
cp VERSION build/
python3 -m zipapp build -o wordfreq.pyz -m wordfreq:main
