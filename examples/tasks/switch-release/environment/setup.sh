#!/bin/sh
# Lays out the two releases outside the work directory.
set -e
notes="$RAMIFY_ROOT/opt/notes"
for release in 1.0 2.0; do
    mkdir -p "$notes/releases/$release/bin"
    printf '#!/bin/sh\necho "notes %s"\n' "$release" > "$notes/releases/$release/bin/notes"
done
chmod 755 "$notes/releases/1.0/bin/notes"
chmod 644 "$notes/releases/2.0/bin/notes"
ln -s releases/1.0 "$notes/current"
mkdir -p "$RAMIFY_ROOT/etc"
printf 'user=notes\nrelease=1.0\nkeep=5\n' > "$RAMIFY_ROOT/etc/notes.conf"
chmod 644 "$RAMIFY_ROOT/etc/notes.conf"
