#!/bin/sh
set -e
awk '$3 == "begin" { open[$4] } $3 == "end" { delete open[$4] } END { for (id in open) print id }' \
    app.log > answer.txt
