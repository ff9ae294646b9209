// Test Device A1: lists the devices it may call, calls Test Device A2, and prints both answers.

const mqtt = require('mqtt')

const host = process.env.MQTT_HOST || 'localhost'
const port = process.env.MQTT_PORT || 1883
const token = process.env.TOKEN || 'A1_TEST_TOKEN'
const target = process.env.DEVICE_ID || 'aa435e80-9fce-11e6-8080-808080808080'

const requests = [
  { method: 'getDevices', params: {} },
  { method: 'sendMsg', params: { deviceId: target, timeout: 2000, oneway: false, body: { param1: 'value1' } } }
]

const client = mqtt.connect(`mqtt://${host}:${port}`, { username: token })

const ask = (id) => client.publish(`v1/devices/me/rpc/request/${id}`, JSON.stringify(requests[id]))

client.on('connect', () => client.subscribe('v1/devices/me/rpc/response/+', () => ask(0)))

client.on('message', (topic, message) => {
  const id = Number(topic.slice('v1/devices/me/rpc/response/'.length))
  console.log(`${requests[id].method}: ${message}`)
  if (id + 1 < requests.length) ask(id + 1)
  else client.end()
})

client.on('error', (error) => {
  console.error(`${error}`)
  process.exit(1)
})
