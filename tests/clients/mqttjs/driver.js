// How do the tests drive devices made with mqtt.js? By one command in JSON a line on standard input; results and
// events come back the same way on standard output.

import readline from 'node:readline'
import mqtt from 'mqtt'

const devices = new Map()

const say = (event) => process.stdout.write(JSON.stringify(event) + '\n')

const commands = {
  connect: ({ device, url, ca, username }, done) => {
    const client = mqtt.connect(url, {
      ca, username, protocolVersion: 5, clientId: '', clean: true, reconnectPeriod: 0
    })
    devices.set(device, client)
    client.once('connect', () => done())
    client.once('error', (error) => done(error))
    client.on('message', (topic, payload) => say({ device, event: 'message', topic, payload: payload.toString() }))
    client.on('close', () => say({ device, event: 'ended' }))
  },
  subscribe: ({ device, filter, qos }, done) => devices.get(device).subscribe(filter, { qos }, (error) => done(error)),
  publish: ({ device, topic, payload, qos }, done) =>
    devices.get(device).publish(topic, payload, { qos }, (error) => done(error)),
  close: ({ device }, done) => devices.get(device).end(false, {}, done),
  vanish: ({ device }, done) => {
    const client = devices.get(device)
    client.once('close', () => done())
    client.stream.destroy()
  }
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { do: what, serial, ...rest } = JSON.parse(line)
  let finished = false
  commands[what](rest, (error) => {
    if (finished) return
    finished = true
    if (serial !== undefined) say(error ? { serial, error: String(error) } : { serial })
  })
}
process.exit(0)
