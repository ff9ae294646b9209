#!/bin/sh
# Which devices may Test Device A1 call? Prints the answer of getDevices.
exec curl -sS -d '{"method":"getDevices","params":{}}' \
    "http://${HTTP_HOST:-localhost}:${HTTP_PORT:-8080}/api/v1/${TOKEN:-A1_TEST_TOKEN}/rpc"
