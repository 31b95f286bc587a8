#!/bin/sh
set -e
cat > build.sh <<'END'
#!/bin/sh
set -e
rm -rf build
mkdir build
cp -r src/wordfreq build/
cp VERSION build/wordfreq/
python3 -m zipapp build -o wordfreq.pyz -m wordfreq.cli:main
END
sh build.sh
