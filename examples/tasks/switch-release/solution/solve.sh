#!/bin/sh
set -e
notes="$RAMIFY_ROOT/opt/notes"
conf="$RAMIFY_ROOT/etc/notes.conf"
chmod 755 "$notes/releases/2.0/bin/notes"
ln -s releases/1.0 "$notes/previous"
ln -s releases/2.0 "$notes/current.new"
mv -T "$notes/current.new" "$notes/current"
sed 's/^release=1.0$/release=2.0/' "$conf" > "$conf.new"
cat "$conf.new" > "$conf"
rm "$conf.new"
