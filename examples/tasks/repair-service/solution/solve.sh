#!/bin/sh
set -e
echo '{"digits": 2}' > settings.json
sed -e 's|celsius \* 5 / 9 + 32|celsius * 9 / 5 + 32|' -e 's/self.reply(500,/self.reply(400,/' \
    server.py > server.new
mv server.new server.py
sh start.sh
