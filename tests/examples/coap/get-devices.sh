#!/bin/sh
# Which devices may Test Device A1 call? Prints the answer of getDevices.
exec coap-client-notls -m post -e '{"method":"getDevices","params":{}}' \
    "coap://${COAP_HOST:-127.0.0.1}:${COAP_PORT:-5683}/api/v1/${TOKEN:-A1_TEST_TOKEN}/rpc"
