// Runs mnot's http-cache-tests against a caching proxy: `node run.mjs PROXY [ARGUMENT…]`.
//
// PROXY is started with the arguments and, in place of `{}`, the address of the tests' origin; it prints the address on
// which it listens as its first line. `cargo xtask cache-tests` does all that.
//
// Ends with 0 when exactly those required tests fail that `known-failures.json` explains.

import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { createInterface } from 'node:readline'

import fetch from 'node-fetch'
import { getResults, runTests } from 'http-cache-tests/client/runner.mjs'
import suites from 'http-cache-tests/tests/index.mjs'
import surrogate from 'http-cache-tests/tests/surrogate-control.mjs'
import handleConfig from 'http-cache-tests/server/handle-config.mjs'
import handleState from 'http-cache-tests/server/handle-state.mjs'
import handleTest from 'http-cache-tests/server/handle-test.mjs'

const known = JSON.parse(readFileSync(new URL('known-failures.json', import.meta.url)))
const handlers = { config: handleConfig, test: handleTest, state: handleState }

const origin = createServer((request, response) => {
  const [, kind, ...path] = new URL(request.url, 'http://origin').pathname.split('/')
  const handle = handlers[kind]
  if (handle) return handle(path, request, response)
  response.writeHead(404).end()
})
await new Promise(resolve => origin.listen(0, '127.0.0.1', resolve))
const address = `127.0.0.1:${origin.address().port}`

const [program, ...options] = process.argv.slice(2)
const proxy = spawn(program, options.map(option => option.replace('{}', address)), {
  stdio: ['ignore', 'pipe', 'inherit']
})
const listening = await new Promise((resolve, reject) => {
  createInterface(proxy.stdout).once('line', resolve)
  proxy.once('error', reject)
  proxy.once('exit', status => reject(new Error(`the proxy ended with ${status}`)))
})

const all = [...suites, surrogate]
const log = console.log
console.log = () => {} // The tests' origin reports what tests are meant to provoke.
await runTests(all, fetch, false, `http://${listening}`)
console.log = log
proxy.removeAllListeners('exit')
proxy.kill()
origin.close()
origin.closeAllConnections()

const results = getResults()
const tests = all.flatMap(suite => suite.tests).filter(test => test.id in results)
const passed = test => results[test.id] === true
const byId = new Map(tests.map(test => [test.id, test]))
// A test counts only when what it builds on holds too.
const stands = test => passed(test) && (test.depends_on ?? []).every(id => stands(byId.get(id)))

let sound = true
for (const kind of ['required', 'optimal', 'check']) {
  const some = tests.filter(test => (test.kind ?? 'required') === kind)
  console.log(`${kind}: ${some.filter(stands).length} of ${some.length}`)
  if (kind === 'check') continue // There is no right or wrong in these.
  for (const test of some.filter(test => !stands(test))) {
    const why = results[test.id] === true ? `needs ${test.depends_on}` : results[test.id][1]
    console.log(`  ${test.id}: ${why}${known[test.id] ? ` (known: ${known[test.id]})` : ''}`)
    if (kind === 'required' && !known[test.id]) sound = false
  }
}
for (const id of Object.keys(known).filter(id => stands(byId.get(id)))) {
  console.log(`${id} is in known-failures.json, and passes`)
  sound = false
}
process.exit(sound ? 0 : 1)
