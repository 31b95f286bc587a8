#!/bin/sh
sleep 0.1
echo gamma > answer.txt
