// Test Device A2: answers every call with {"status":"ok"}, until Ctrl-C.

const mqtt = require('mqtt')

const host = process.env.MQTT_HOST || 'localhost'
const port = process.env.MQTT_PORT || 1883
const token = process.env.TOKEN || 'A2_TEST_TOKEN'

const client = mqtt.connect(`mqtt://${host}:${port}`, { username: token })

client.on('connect', () => {
  client.subscribe('v1/devices/me/rpc/request/+', (error, granted) => {
    if (error || granted.some(({ qos }) => qos >= 128)) throw error || new Error('the subscription was refused')
    console.log('Waiting for calls')
  })
})

client.on('message', (topic, message) => {
  console.log(`request.topic: ${topic}`)
  console.log(`request.body: ${message}`)
  const requestId = topic.slice('v1/devices/me/rpc/request/'.length)
  client.publish(`v1/devices/me/rpc/response/${requestId}`, JSON.stringify({ status: 'ok' }))
})

client.on('error', (error) => {
  console.error(`${error}`)
  process.exit(1)
})
