// One queue, one action: `node peer.mjs SYSTEM ACTION URL COUNT`. Prints `begin` and `end` around what is measured.
import { performance } from "node:perf_hooks";

const [system, action, url, text] = process.argv.slice(2);
const count = Number(text);
const BATCH = 5000;
const TASKS = 256;
const say = (line) => process.stdout.write(`${line}\n`);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const numbers = (from, to) => Array.from({ length: to - from }, (_, at) => ({ n: from + at }));

/** Counts handled jobs, and wakes whoever waits for the last. */
const counter = (target) => {
  let handled = 0;
  let done;
  const all = new Promise((resolve) => (done = resolve));
  return { all, hit: (by = 1) => { handled += by; if (handled >= target) done(); } };
};

const inBatches = async (push) => {
  for (let from = 0; from < count; from += BATCH) await push(numbers(from, Math.min(from + BATCH, count)));
};
const byTasks = async (push) => {
  let next = 0;
  const task = async () => { while (next < count) await push({ n: next++ }); };
  await Promise.all(Array.from({ length: TASKS }, task));
};

const SYSTEMS = {
  async "graphile-worker"() {
    const { run, makeWorkerUtils, Logger } = await import("graphile-worker");
    const logger = new Logger(() => () => {});
    const utils = await makeWorkerUtils({ connectionString: url, logger, maxPoolSize: 20 });
    const preset = (handle) => ({
      connectionString: url, logger, noHandleSignals: true, taskList: { noop: handle },
      preset: { worker: {
        connectionString: url, concurrentJobs: 24, pollInterval: 2000, maxPoolSize: 20, logger,
        localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0,
      } },
    });
    const payloads = (jobs) => jobs.map((payload) => ({ identifier: "noop", payload }));
    return {
      setup: () => utils.migrate(),
      bulk: (jobs) => utils.addJobs(payloads(jobs)),
      push: (job) => utils.addJob("noop", job),
      async work(handle) {
        const runner = await run(preset(async (payload) => handle([payload])));
        return () => runner.stop();
      },
    };
  },
  async "pg-boss"() {
    const { PgBoss } = await import("pg-boss");
    const boss = new PgBoss({ connectionString: url, max: 20 });
    boss.on("error", (error) => console.error(error));
    await boss.start();
    return {
      setup: () => boss.createQueue("noop"),
      bulk: (jobs) => boss.insert("noop", jobs.map((data) => ({ data }))),
      push: (job) => boss.send("noop", job),
      async work(handle) {
        const settings = { batchSize: 1000, pollingIntervalSeconds: 0.5, burstTrigger: true };
        await boss.work("noop", settings, async (jobs) => handle(jobs.map((job) => job.data)));
        return () => boss.stop({ graceful: false });
      },
    };
  },
  async bullmq() {
    const { Queue, Worker } = await import("bullmq");
    const { Redis } = await import("ioredis");
    const { hostname: host, port } = new URL(url);
    const connection = new Redis({ host, port: Number(port), maxRetriesPerRequest: null });
    const queue = new Queue("noop", { connection });
    const options = { removeOnComplete: true };
    return {
      setup: () => queue.waitUntilReady(),
      bulk: (jobs) => queue.addBulk(jobs.map((data) => ({ name: "noop", data, opts: options }))),
      push: (job) => queue.add("noop", job, options),
      async work(handle) {
        const worker = new Worker("noop", async (job) => handle([job.data]), { connection, concurrency: 200 });
        await worker.waitUntilReady();
        return () => worker.close(true);
      },
    };
  },
};

const peer = await SYSTEMS[system]();
const ACTIONS = {
  setup: () => peer.setup(),
  async fill() { await inBatches(peer.bulk); },
  async insert() { say("begin"); await inBatches(peer.bulk); say("end"); },
  async push() { await peer.push({ n: -1 }); say("begin"); await byTasks(peer.push); say("end"); },
  async drain() {
    const { all, hit } = counter(count);
    say("begin");
    await peer.work((jobs) => hit(jobs.length));
    await all;
    say("end");
  },
  async latency() {
    let started;
    await peer.work(() => { started?.(performance.now()); });
    await sleep(1500);
    const taken = [];
    for (let at = 0; at < count; at++) {
      const start = new Promise((resolve) => (started = resolve));
      const pushed = performance.now();
      await peer.push({ n: at });
      taken.push(Math.round(((await start) - pushed) * 1000));
      await sleep(10 + Math.random() * 20);
    }
    say(`latency ${taken.join(" ")}`);
  },
};
await ACTIONS[action]();
process.exit(0);
