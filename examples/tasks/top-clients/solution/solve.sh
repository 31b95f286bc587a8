#!/bin/sh
set -e
awk '$(NF-1) >= 400 { failed[$1]++ } END { for (ip in failed) print failed[ip], ip }' access.log |
    LC_ALL=C sort -k1,1nr -k2,2 | head -n 5 > top.txt
