"use strict";
(() => {
  // Longer than a connection to the database may take, so that the page says why there is none.
  const EVERY_MS = 3000, DEADLINE_MS = 15000, PAGE = 50;
  const by = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const grouped = (n) => n.toLocaleString("en-US");
  const length = (s) => s < 60 ? Math.round(s) + " s" : s < 3600 ? Math.floor(s / 60) + " min" : s < 86400 ? Math.floor(s / 3600) + " h" : Math.floor(s / 86400) + " d";
  const when = (time) => {
    const ago = (Date.now() - new Date(time)) / 1000;
    return ago < 0 ? "in " + length(-ago) : length(ago) + " ago";
  };

  const ask = async (path, body) => {
    const options = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch(path, { ...options, signal: AbortSignal.timeout(DEADLINE_MS) });
    const text = await answer.text();
    let said = null;
    try { said = JSON.parse(text); } catch { /* axum's own refusals are no JSON */ }
    if (!answer.ok) throw new Error(said && said.message ? said.message : text || answer.statusText);
    return said;
  };
  const notice = (text) => {
    by("notice").hidden = !text;
    by("notice").textContent = text || "";
  };
  const say = (text) => { by("said").textContent = text; };

  // One action at a time, and what it did is looked at at once.
  let busy = false;
  const act = async (action, body, told) => {
    if (busy) return;
    busy = true;
    try {
      const done = await ask("/admin/jobs/" + action, body);
      say(told(done));
      await refresh();
    } catch (error) {
      notice(error.message);
    } finally {
      busy = false;
    }
  };
  const button = (label, press) => {
    const node = make("button", "", label);
    node.type = "button";
    node.addEventListener("click", (event) => { event.stopPropagation(); press(); });
    return node;
  };

  const queueRow = (queue) => {
    const row = make("tr");
    row.dataset.queue = queue.queue;
    row.append(make("td", "code", queue.queue), make("td", queue.paused ? "bad" : "", queue.paused ? "paused" : "open"));
    for (const count of [queue.ready, queue.scheduled, queue.running, queue.blocked, queue.dead]) row.append(make("td", "num", grouped(count)));
    row.append(make("td", "num", queue.oldest_ready === null ? "–" : length(queue.oldest_ready)));
    const action = queue.paused ? "resume" : "pause", cell = make("td");
    cell.append(button(queue.paused ? "Resume" : "Pause", () => act(action, { queue: queue.queue }, () => queue.queue + (queue.paused ? " goes on" : " is paused"))));
    row.append(cell);
    return row;
  };

  const LIVE = ["ready", "scheduled", "running", "blocked"];
  const PAST = { retry: "retried", cancel: "cancelled", discard: "discarded" };
  const did = (action) => (done) => grouped(done.jobs) + (done.jobs === 1 ? " job " : " jobs ") + PAST[action];
  const one = (action, label, job) => button(label, () => act(action, { ids: [job.id] }, did(action)));
  const jobRow = (job) => {
    const row = make("tr");
    row.dataset.id = job.id;
    const state = job.reason ? job.state + " (" + job.reason.replace("_", " ") + ")" : job.state;
    const failed = job.max_attempts === null ? String(job.failures) : job.failures + "/" + job.max_attempts;
    row.append(make("td", "num code", String(job.id)), make("td", "code", job.queue), make("td", "code", job.name), make("td", "", state), make("td", "", when(job.at)), make("td", "num", failed), make("td", "code", job.key === null ? "–" : job.key));
    const error = make("td", "long", job.error || "");
    error.title = job.error || "";
    const cell = make("td", "actions");
    if (job.state === "dead") cell.append(one("retry", "Retry", job), one("discard", "Discard", job));
    else if (LIVE.includes(job.state)) cell.append(one("cancel", "Cancel", job));
    row.append(error, cell);
    row.addEventListener("click", () => details(job.id));
    return row;
  };

  const details = async (id) => {
    try {
      const job = await ask("/admin/jobs/" + id);
      by("details-id").textContent = id;
      by("details-text").textContent = JSON.stringify(job, null, 2);
      by("details").hidden = false;
      by("details").scrollIntoView({ block: "nearest" });
    } catch (error) {
      notice(error.message);
    }
  };

  const filter = () => {
    const meant = {};
    for (const name of ["state", "queue", "name", "key"]) if (by(name).value) meant[name] = by(name).value;
    return meant;
  };
  let after = null, asked = 0;
  const refresh = async () => {
    const turn = ++asked;
    const query = new URLSearchParams({ ...filter(), limit: PAGE });
    if (after !== null) query.set("after", after);
    try {
      const [queues, page] = await Promise.all([ask("/admin/jobs/queues"), ask("/admin/jobs?" + query)]);
      // Another question was asked meanwhile.
      if (turn !== asked) return;
      by("queues").replaceChildren(...queues.map(queueRow));
      by("no-queues").hidden = queues.length > 0;
      by("jobs").replaceChildren(...page.jobs.map(jobRow));
      by("no-jobs").hidden = page.jobs.length > 0 || page.next !== null;
      by("older").hidden = page.next === null;
      by("older").onclick = () => { after = page.next; refresh(); };
      by("newest").hidden = after === null;
      const state = by("state").value;
      by("retry-all").hidden = by("discard-all").hidden = state !== "dead";
      by("cancel-all").hidden = !LIVE.includes(state);
      notice("");
    } catch (error) {
      if (turn === asked) notice(error.message);
    }
  };

  for (const action of ["retry", "cancel", "discard"]) {
    by(action + "-all").addEventListener("click", () => {
      const meant = filter(), words = Object.entries(meant).map(([name, value]) => name + " " + value).join(", ");
      if (confirm(action + " all jobs with " + words + "?")) act(action, { filter: meant }, did(action));
    });
  }
  const anew = () => { after = null; refresh(); };
  for (const id of ["state", "queue", "name", "key"]) by(id).addEventListener("input", anew);
  by("newest").addEventListener("click", anew);
  // Rows do not change under the pointer that is about to press.
  setInterval(() => { if (!busy && !document.hidden && !document.querySelector("tbody:hover, button:focus-visible")) refresh(); }, EVERY_MS);
  refresh();
})();
