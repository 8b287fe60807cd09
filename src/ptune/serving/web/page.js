"use strict";

// Number of labels shown before "Show all".
const FEW = 10;

const $ = (id) => document.getElementById(id);
let tasks = new Map();

function show(error) {
  $("error").textContent = error;
  $("error").hidden = !error;
}

// Returns the server's answer, or throws an Error with a message for the user.
async function ask(path, body) {
  const headers = {};
  if ($("token").value) headers.Authorization = `Bearer ${$("token").value}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
    });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.status === 401) $("token-row").hidden = false;
  const answer = await response.json().catch(() => null);
  if (!response.ok || answer === null) {
    throw new Error(answer?.error ?? `The server answered ${response.status}.`);
  }
  return answer;
}

async function showTasks() {
  try {
    const found = await ask("tasks");
    tasks = new Map(found.map((task) => [task.name, task]));
    $("task").replaceChildren(...found.map((task) => new Option(task.name, task.name)));
    $("count").textContent = `${found.length} ${found.length === 1 ? "task" : "tasks"}.`;
    $("go").disabled = found.length === 0;
    show(found.length ? "" : "The server has no tasks yet.");
    aboutTask();
  } catch (error) {
    $("go").disabled = true;
    show(error.message);
  }
}

function aboutTask() {
  const task = tasks.get($("task").value);
  $("answer").hidden = true;
  if (!task) return;
  const count = task.labels.length;
  $("about").textContent =
    task.problem_type === "regression"
      ? "Returns a number."
      : `${count} labels${task.problem_type.startsWith("multi") ? ", any number of them" : ""}: ` +
        task.labels.slice(0, 8).join(", ") +
        (count > 8 ? ", …" : "");
  $("pair-row").hidden = task.pairs === false;
  $("pair").required = task.pairs === true;
}

function row({ label, score }) {
  const item = document.createElement("li");
  const names = document.createElement("div");
  names.className = "names";
  const name = document.createElement("span");
  name.textContent = label;
  const number = document.createElement("span");
  number.className = "score";
  number.textContent = `${(100 * score).toFixed(1)}%`;
  names.append(name, number);
  const track = document.createElement("div");
  track.className = "track";
  track.setAttribute("aria-hidden", "true"); // the number says the same
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.style.width = `${100 * score}%`;
  track.append(bar);
  item.append(names, track);
  return item;
}

function showAnswer(task, scores, milliseconds) {
  const number = task.problem_type === "regression";
  const several = task.problem_type.startsWith("multi");
  const chosen = several ? scores.filter(({ score }) => score > 0.5) : scores.slice(0, 1);
  $("answer-title").textContent = number
    ? `${scores[0].label}: ${scores[0].score.toFixed(3)}`
    : chosen.map(({ label }) => label).join(", ") || "No label";
  const rows = number ? [] : scores.map(row);
  $("bars").replaceChildren(...rows.slice(0, FEW));
  $("all").hidden = rows.length <= FEW;
  $("all").textContent = `Show all ${rows.length} labels`;
  $("all").onclick = () => {
    $("bars").replaceChildren(...rows);
    $("all").hidden = true;
  };
  $("took").textContent = `Answered in ${Math.round(milliseconds)} ms.`;
  $("answer").hidden = false;
}

async function classify(event) {
  event.preventDefault();
  const task = tasks.get($("task").value);
  const pair = $("pair-row").hidden ? "" : $("pair").value;
  const inputs = [pair.trim() ? [$("text").value, pair] : [$("text").value]];
  $("go").disabled = true;
  try {
    const started = performance.now();
    const [scores] = await ask(`tasks/${encodeURIComponent(task.name)}/predict`, { inputs });
    show("");
    showAnswer(task, scores, performance.now() - started);
  } catch (error) {
    $("answer").hidden = true;
    show(error.message);
  } finally {
    $("go").disabled = false;
  }
}

$("form").addEventListener("submit", classify);
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("task").addEventListener("change", aboutTask);
$("show-tasks").addEventListener("click", showTasks);
$("token").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  showTasks();
});
showTasks();
