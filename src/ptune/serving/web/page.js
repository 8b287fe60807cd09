"use strict";

// Labels shown before "Show all"; tasks from which on there is a search; texts per request.
const FEW = 10;
const MANY_TASKS = 8;
const PER_REQUEST = 32;

const $ = (id) => document.getElementById(id);
let tasks = new Map();
let asksPair = false; // a task that does not record it, and the user added a second text

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text; // as text, whatever it contains
  if (className) made.className = className;
  return made;
}

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

// Tasks.

async function showTasks() {
  try {
    const found = await ask("tasks");
    tasks = new Map(found.map((task) => [task.name, task]));
    $("count").textContent = `${counted(found.length)}.`;
    $("search-row").hidden = found.length <= MANY_TASKS;
    $("go").disabled = found.length === 0;
    show(found.length ? "" : "The server has no tasks yet.");
    filterTasks();
  } catch (error) {
    $("go").disabled = true;
    show(error.message);
  }
}

const counted = (n) => `${n.toLocaleString("en")} ${n === 1 ? "task" : "tasks"}`;

// Show the tasks whose name or labels contain every word of the search.
function filterTasks() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const before = $("task").value;
  const names = [...tasks.values()]
    .filter(({ name, labels }) => {
      const text = [name, ...labels].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    })
    .map(({ name }) => name);
  $("task").replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(before)) $("task").value = before;
  $("task").size = $("search-row").hidden ? 0 : Math.min(8, Math.max(2, names.length));
  $("found").textContent = words.length ? `${names.length} of ${counted(tasks.size)}` : "";
  if (names.length && !$("task").value) $("task").value = names[0];
  if ($("task").value !== before) aboutTask();
}

function aboutTask() {
  const task = tasks.get($("task").value);
  $("answer").hidden = true;
  asksPair = false;
  $("about").textContent = task ? described(task) : "";
  showFields();
}

function described({ labels, problem_type: kind }) {
  if (kind === "regression") return "Returns a number.";
  const several = kind.startsWith("multi") ? ", any number of them" : "";
  const shown = labels.slice(0, 8).join(", ") + (labels.length > 8 ? ", …" : "");
  return `${labels.length} labels${several}: ${shown}`;
}

const isPair = (task) => task?.pairs === true || (task?.pairs === null && asksPair);

function showFields() {
  const task = tasks.get($("task").value);
  const many = $("many").checked;
  $("pair-row").hidden = many || !isPair(task);
  $("pair").required = !$("pair-row").hidden;
  $("add-pair").hidden = many || task?.pairs !== null || asksPair;
  $("text-label").textContent = many ? "Texts" : "Text";
  $("text").rows = many ? 8 : 4;
  $("form-of-text").hidden = !many;
  $("form-of-text").textContent =
    task?.pairs === false ? "One text per line." : "One per line; a tab between the texts of a pair.";
  $("command-row").hidden = true;
}

// The texts as the server expects them: a row of one or two texts for each.
function rows() {
  const task = tasks.get($("task").value);
  if (!$("many").checked) {
    return [$("pair-row").hidden ? [$("text").value] : [$("text").value, $("pair").value]];
  }
  const lines = $("text").value.split("\n").filter((line) => line.trim());
  return lines.map((line) => {
    const cut = task.pairs === false ? -1 : line.indexOf("\t");
    return cut < 0 ? [line] : [line.slice(0, cut), line.slice(cut + 1)];
  });
}

// Answers.

const percent = (score) => `${(100 * score).toFixed(1)}%`;

function bar({ label, score }) {
  const item = element("li");
  const names = element("div", undefined, "names");
  names.append(element("span", label), element("span", percent(score), "score"));
  const track = element("div", undefined, "track");
  track.setAttribute("aria-hidden", "true"); // the number says the same
  const filled = element("div", undefined, "bar");
  filled.style.width = `${100 * score}%`;
  track.append(filled);
  item.append(names, track);
  return item;
}

// What the task answers, and its score.
function decided(task, scores) {
  if (task.problem_type === "regression") return [scores[0].score.toFixed(3), ""];
  const several = task.problem_type.startsWith("multi");
  const least = (label) => task.thresholds?.[task.labels.indexOf(label)] ?? 0.5;
  const chosen = several
    ? scores.filter(({ label, score }) => score > least(label))
    : scores.slice(0, 1);
  const names = chosen.map(({ label }) => label).join(", ") || "No label";
  return [names, percent(scores[0].score)];
}

function showOne(task, scores) {
  const number = task.problem_type === "regression";
  const [answer] = decided(task, scores);
  $("answer-title").textContent = number ? `${scores[0].label}: ${answer}` : answer;
  const bars = number ? [] : scores.map(bar);
  $("bars").replaceChildren(...bars.slice(0, FEW));
  $("all").hidden = bars.length <= FEW;
  $("all").textContent = `Show all ${bars.length} labels`;
  $("all").onclick = () => {
    $("bars").replaceChildren(...bars);
    $("all").hidden = true;
  };
}

function showMany(task, texts, answers) {
  const table = texts.map((row, i) => [row.join(" ⏎ "), ...decided(task, answers[i])]);
  $("answer-title").textContent = `${table.length} ${table.length === 1 ? "text" : "texts"}`;
  $("bars").replaceChildren();
  $("all").hidden = true;
  $("rows").replaceChildren(
    ...table.map((cells) => {
      const row = element("tr");
      row.append(...cells.map((cell) => element("td", cell)));
      return row;
    }),
  );
  $("copy-table").onclick = async () => {
    const lines = table.map((cells) => cells.map((c) => c.replace(/\s+/g, " ")).join("\t"));
    await copy(["text\tanswer\tscore", ...lines].join("\n"));
    $("took").textContent = "Copied.";
  };
}

async function classify(event) {
  event.preventDefault();
  const task = tasks.get($("task").value);
  const texts = rows();
  const many = $("many").checked;
  $("go").disabled = true;
  try {
    const started = performance.now();
    const answers = [];
    for (let i = 0; i < Math.max(texts.length, 1); i += PER_REQUEST) {
      const inputs = texts.slice(i, i + PER_REQUEST);
      answers.push(...(await ask(path(task), { inputs })));
    }
    show("");
    (many ? showMany : (t, _, [scores]) => showOne(t, scores))(task, texts, answers);
    $("table-row").hidden = $("copy-table").hidden = !many;
    $("took").textContent = `Answered in ${Math.round(performance.now() - started)} ms.`;
    $("answer").hidden = false;
  } catch (error) {
    $("answer").hidden = true;
    show(error.message);
  } finally {
    $("go").disabled = false;
  }
}

const path = (task) => `tasks/${encodeURIComponent(task.name)}/predict`;

// Copying.

const quoted = (word) => `'${word.replaceAll("'", `'\\''`)}'`;

// The request as a command for a shell. The token stays out of it.
function command() {
  const task = tasks.get($("task").value);
  const body = JSON.stringify({ inputs: rows() });
  const parts = ["curl -s", quoted(new URL(path(task), document.baseURI).href)];
  if ($("token").value) parts.push('-H "Authorization: Bearer $PTUNE_TOKEN"');
  parts.push("-H 'Content-Type: application/json'", "-d", quoted(body));
  return parts.join(" ");
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // an address without https, or no permission
  }
}

async function copyCommand() {
  if (!tasks.has($("task").value)) return;
  $("command").value = command();
  $("command-row").hidden = false;
  $("copied").textContent = "";
  $("command").select();
  const copied = await copy($("command").value);
  $("copied").textContent = copied ? "copied" : "press Ctrl + C to copy";
}

// Events.

$("form").addEventListener("submit", classify);
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("task").addEventListener("change", aboutTask);
$("many").addEventListener("change", showFields);
$("add-pair").addEventListener("click", () => {
  asksPair = true;
  showFields();
  $("pair").focus();
});
$("curl").addEventListener("click", copyCommand);
$("search").addEventListener("input", filterTasks);
$("search").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "Enter") {
    event.preventDefault();
    $(event.key === "Enter" ? "text" : "task").focus();
  }
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if (event.key !== "/" || typing || $("search-row").hidden) return;
  event.preventDefault();
  $("search").focus();
});
$("show-tasks").addEventListener("click", showTasks);
$("token").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  showTasks();
});
showTasks();
