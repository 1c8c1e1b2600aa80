// Everything that comes from outside is put into the page as text, never as markup.
"use strict";

const FEW = 3; // so many methods are shown open
const $ = (id) => document.getElementById(id);
const state = { key: "", view: { entries: [] }, name: null, shown: "", lines: 1000 };

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function ask(path, options) {
  const headers = { ...(options && options.headers) };
  if (state.key) headers["X-Pyro-Gateway-Key"] = state.key;
  return fetch(path, { cache: "no-store", credentials: "omit", ...options, headers });
}

const encoded = (name) => name.split("/").map(encodeURIComponent).join("/");

// --- live updates -----------------------------------------------------------------------------------------------

function say(kind, text) {
  $("live").className = "live " + kind;
  if ($("live-text").textContent !== text) $("live-text").textContent = text;
}

async function follow() {
  let pause = 500;
  for (;;) {
    try {
      const answer = await ask("api/events");
      if (answer.status === 403) {
        askForKey();
        return;
      }
      if (!answer.ok) throw new Error(await answer.text());
      $("key-form").hidden = true;
      for await (const event of events(answer.body)) {
        pause = 500;
        show(JSON.parse(event));
      }
    } catch (error) {
      console.info("live updates:", error.message);
    }
    say("off", "Connection lost, trying again…");
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(pause * 2, 10000);
  }
}

async function* pieces(body, separator) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split(separator);
    rest = parts.pop();
    yield* parts;
  }
  if (rest) yield rest;
}

async function* events(body) {
  for await (const block of pieces(body, "\n\n")) {
    const data = block.split("\n").filter((line) => line.startsWith("data: "));
    if (data.length) yield data.map((line) => line.slice(6)).join("\n");
  }
}

function askForKey() {
  say("off", "A key is needed");
  $("key-form").hidden = false;
  if (state.key) {
    $("key-help").textContent = "That was not the key. Try again.";
    $("key-help").className = "wrong";
  }
  $("key").focus();
}

// --- names ------------------------------------------------------------------------------------------------------

function show(view) {
  announce(state.view.entries, view.entries);
  state.view = view;
  const count = view.entries.length;
  $("where").textContent = view.nameserver ? "name server at " + view.nameserver : "";
  $("count").textContent = count < view.total ? `(${count} of ${view.total})` : `(${count})`;
  $("problem").hidden = !view.error;
  $("problem").textContent = view.error ? "The name server cannot be asked, this may be old. " + view.error : "";
  if (view.error) say("off", "Name server not reachable");
  else say("on", "Live");
  showObjects();
  showEntries();
  const now = view.entries.find((entry) => entry.name === state.name);
  if (state.name && JSON.stringify(now) !== state.entry) choose(state.name, false);
  if (!state.name && location.hash.length > 2) fromHash();
}

function announce(before, after) {
  if (!state.started) {
    state.started = true;
    return;
  }
  const old = new Set(before.map((entry) => entry.name));
  const fresh = new Set(after.map((entry) => entry.name));
  const came = [...fresh].filter((name) => !old.has(name));
  const went = [...old].filter((name) => !fresh.has(name));
  const parts = [];
  if (came.length) parts.push("New: " + came.slice(0, 5).join(", "));
  if (went.length) parts.push("Gone: " + went.slice(0, 5).join(", "));
  if (parts.length) $("news").textContent = parts.join(". ");
}

function showObjects() {
  const wanted = $("filter").value.trim().toLowerCase();
  const fits = (entry) => !wanted || [entry.name, ...entry.tags].some((text) => text.toLowerCase().includes(wanted));
  const entries = state.view.entries.filter(fits);
  const focused = document.activeElement && document.activeElement.dataset.name;
  $("objects").replaceChildren(...entries.map(objectItem));
  if (focused !== undefined) {
    const again = [...$("objects").querySelectorAll("button")].find((button) => button.dataset.name === focused);
    if (again) again.focus({ preventScroll: true });
  }
  $("none").hidden = entries.length > 0;
  $("none").textContent = wanted ? "No object fits." : `No name matches ${state.view.pattern || "anything"}.`;
}

function objectItem(entry) {
  const current = entry.name === state.name ? "true" : null;
  const button = make("button", { type: "button", "aria-current": current }, entry.name);
  button.dataset.name = entry.name;
  button.addEventListener("click", () => {
    location.hash = "/" + encodeURIComponent(entry.name);
  });
  return make("li", {}, button);
}

function showEntries() {
  const rows = state.view.entries.flatMap((entry) => entry.addresses.map((address) => entryRow(entry, address)));
  $("entries").replaceChildren(...rows);
}

function entryRow(entry, address) {
  const cell = (label, ...children) => make("td", { "data-label": label }, ...children);
  return make(
    "tr",
    {},
    make("th", { scope: "row" }, entry.name),
    cell("Address", make("span", { class: "mono" }, address.uri || "not shown")),
    cell("Protocol", address.protocols.join(", ") || "not told"),
    cell("Lease", lease(address)),
    cell("Tags", entry.tags.join(", ") || "none"),
  );
}

function lease(address) {
  if (address.ttl !== null) return make("span", { class: "leased" }, `alive; gone ${address.ttl} s after its daemon`);
  return make("span", {}, state.view.leases ? "none; stays until removed" : "not told");
}

// --- one object -------------------------------------------------------------------------------------------------

function fromHash() {
  const name = decodeURIComponent(location.hash.slice(2));
  if (name) choose(name, true);
}

async function choose(name, moved) {
  const entry = state.view.entries.find((one) => one.name === name);
  const other = name !== state.name;
  state.name = name;
  state.entry = JSON.stringify(entry);
  if (other) {
    state.shown = "";
    showObjects();
    $("main").replaceChildren(make("p", { class: "quiet empty", role: "status" }, `Asking ${name}…`));
  }
  const answer = await ask("api/objects/" + encoded(name)).catch((error) => ({ ok: false, text: async () => error.message }));
  const text = await answer.text();
  if (state.name !== name || text === state.shown) return;
  state.shown = text;
  document.title = name + " – Pyro objects";
  $("main").replaceChildren(...(answer.ok ? objectParts(name, entry, JSON.parse(text)) : [unreachable(name, text)]));
  if (moved && other) $("main").focus({ preventScroll: true });
}

function unreachable(name, text) {
  let reason = text;
  try {
    reason = JSON.parse(text).text;
  } catch {
    // it was plain text
  }
  const again = make("button", { type: "button" }, "Try again");
  again.addEventListener("click", () => {
    state.shown = "";
    choose(name, false);
  });
  return make("div", { class: "about card" }, make("h2", {}, name), make("p", { class: "problem", role: "alert" }, reason), make("p", {}, again));
}

function objectParts(name, entry, about) {
  const tags = make("ul", { class: "tags", "aria-label": "Tags" }, ...(entry ? entry.tags : []).map((tag) => make("li", {}, tag)));
  const head = make("div", { class: "about" }, make("h2", {}, name), about.doc ? make("p", { class: "doc" }, about.doc) : null, entry && entry.tags.length ? tags : null);
  if (!about.complete) head.append(make("p", { class: "quiet" }, "Its daemon tells names only: no documentation, no parameters."));
  const parts = [head];
  if (about.attributes.length) parts.push(group("Attributes", about.attributes.map((attribute) => attributeCard(name, attribute))));
  if (about.methods.length) parts.push(group("Methods", about.methods.map((method) => methodCard(name, method, about.methods.length <= FEW))));
  return parts;
}

function group(title, cards) {
  const section = make("section", { class: "members", "aria-label": title }, make("h3", {}, title));
  section.append(...cards);
  return section;
}

function attributeCard(name, attribute) {
  const answer = answerBox();
  const button = make("button", { type: "button", "aria-label": "Read " + attribute.name }, "Read");
  const type = attribute.type ? make("span", { class: "plain" }, ": " + attribute.type) : null;
  const text = make("div", {}, make("h4", { class: "signature" }, attribute.name, type));
  if (attribute.doc) text.append(make("p", { class: "doc quiet" }, attribute.doc));
  button.addEventListener("click", () => run(answer, name, attribute.name, { method: "GET" }, [button]));
  return make("article", { class: "attribute", "aria-label": attribute.name }, text, button, answer);
}

function methodCard(name, method, open) {
  const answer = answerBox();
  const known = method.parameters !== null;
  const inputs = known ? method.parameters.map((parameter) => field(method, parameter)) : [anyField(method)];
  const call = make("button", { type: "submit", class: "primary", "aria-label": "Call " + method.name }, "Call");
  const stop = make("button", { type: "button", hidden: true }, "Stop");
  const oneway = make("input", { type: "checkbox" });
  const actions = make("div", { class: "actions" }, call, stop);
  if (!method.oneway && !method.stream) actions.append(make("label", {}, oneway, "do not wait for the answer"));
  const form = make("form", { class: "call", novalidate: true }, inputs.length ? make("div", { class: "fields" }, ...inputs.map((input) => input.node)) : "", actions);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const body = collected(method, inputs);
    if (body === undefined) return;
    const headers = { "Content-Type": "application/json", Accept: "application/json, application/x-ndjson" };
    if (oneway.checked) headers["X-Pyro-Options"] = "oneway";
    run(answer, name, method.name, { method: "POST", headers, body: JSON.stringify(body) }, [call], stop);
  });
  const notes = [method.oneway ? "one way" : "", method.stream ? "item stream" : ""].filter(Boolean);
  const [first, ...more] = method.doc.split("\n\n");
  const summary = make("summary", {}, make("h4", { class: "signature" }, ...signature(method)));
  if (first || notes.length) summary.append(make("span", { class: "doc quiet" }, [...notes, first].filter(Boolean).join(" · ")));
  const inside = make("div", { class: "inside" }, more.length ? make("p", { class: "doc" }, more.join("\n\n")) : "", form, answer);
  return make("article", { class: "method", "aria-label": method.name }, make("details", { open }, summary, inside));
}

function signature(method) {
  if (method.parameters === null) return [method.name, make("span", { class: "plain" }, "(…)")];
  const stars = { var_positional: "*", var_keyword: "**" };
  const one = (parameter) =>
    (stars[parameter.kind] || "") + parameter.name + (parameter.type ? ": " + parameter.type : "") + (parameter.default !== null ? " = " + parameter.default : "");
  const returns = method.returns ? " → " + method.returns : "";
  return [method.name, make("span", { class: "plain" }, "(" + method.parameters.map(one).join(", ") + ")" + returns)];
}

// --- arguments --------------------------------------------------------------------------------------------------

let fields = 0;

function field(method, parameter) {
  const id = "field-" + ++fields;
  const type = parameter.type || "";
  const many = parameter.kind === "var_positional" ? "JSON array" : parameter.kind === "var_keyword" ? "JSON object" : "";
  const optional = parameter.default !== null || many !== "";
  const label = make("label", { for: id }, parameter.name, make("span", { class: "plain" }, ` ${many || type || "text or JSON"}${optional ? ", optional" : ""}`));
  const input = control(id, type, many, parameter);
  const wrong = make("p", { class: "wrong", id: id + "-wrong", hidden: true });
  const node = make("div", { class: input.tagName === "TEXTAREA" ? "field wide" : "field" }, label, input, wrong);
  return { parameter, node, input, wrong, optional, read: () => read(input.value, type, many) };
}

function control(id, type, many, parameter) {
  const about = { id, "aria-describedby": id + "-wrong", autocomplete: "off", spellcheck: "false" };
  if (type === "bool") {
    const choices = parameter.default !== null ? [["", `default (${parameter.default})`]] : [];
    choices.push(["true", "true"], ["false", "false"]);
    return make("select", about, ...choices.map(([value, text]) => make("option", { value }, text)));
  }
  const structured = many || /^(list|dict|tuple|set|frozenset|Sequence|Mapping)\b/.test(type);
  if (structured) return make("textarea", { ...about, rows: 3, placeholder: parameter.default || "" });
  const numeric = type === "int" ? "numeric" : type === "float" ? "decimal" : null;
  return make("input", { ...about, type: "text", inputmode: numeric, placeholder: parameter.default !== null ? parameter.default : "" });
}

function anyField(method) {
  const id = "field-" + ++fields;
  const label = make("label", { for: id }, "Arguments", make("span", { class: "plain" }, " as JSON: an object of names, or an array in order"));
  const input = make("textarea", { id, rows: 2, spellcheck: "false", "aria-describedby": id + "-wrong" });
  const wrong = make("p", { class: "wrong", id: id + "-wrong", hidden: true });
  const parse = () => {
    const value = input.value.trim() ? JSON.parse(input.value) : {};
    if (typeof value !== "object" || value === null) throw new Error("an object or an array is needed");
    return value;
  };
  return { node: make("div", { class: "field wide" }, label, input, wrong), input, wrong, optional: false, whole: true, read: parse };
}

function read(text, type, many) {
  if (many) {
    const value = JSON.parse(text);
    if (Array.isArray(value) !== (many === "JSON array") || typeof value !== "object" || value === null) throw new Error(`a ${many} is needed`);
    return value;
  }
  if (type === "str") return text;
  if (type === "bytes") return { data: btoa(String.fromCharCode(...new TextEncoder().encode(text))), encoding: "base64" };
  if (type === "int" && !/^\s*[-+]?\d+\s*$/.test(text)) throw new Error("a whole number is needed");
  if (type === "float" && !Number.isFinite(Number(text))) throw new Error("a number is needed");
  if (type === "int" || type === "float") return Number(text);
  try {
    return JSON.parse(text);
  } catch (error) {
    if (/^(list|dict|tuple|set|frozenset|Sequence|Mapping)\b/.test(type)) throw error;
    return text;
  }
}

function collected(method, inputs) {
  const values = [];
  let first = null;
  for (const one of inputs) {
    const text = one.input.value;
    one.wrong.hidden = true;
    one.input.removeAttribute("aria-invalid");
    const empty = text === "" && !(one.parameter && one.parameter.type === "str" && !one.optional);
    if (empty && one.optional) continue;
    try {
      if (empty && !one.whole) throw new Error("this is needed");
      values.push([one.parameter, one.read()]);
    } catch (error) {
      one.wrong.textContent = error instanceof SyntaxError ? "this is not JSON" : error.message;
      one.wrong.hidden = false;
      one.input.setAttribute("aria-invalid", "true");
      first = first || one.input;
    }
  }
  if (first) {
    first.focus();
    return undefined;
  }
  if (method.parameters === null) return values[0][1];
  const byOrder = method.parameters.some((parameter) => ["positional_only", "var_positional"].includes(parameter.kind));
  if (byOrder) return values.flatMap(([parameter, value]) => (parameter.kind === "var_positional" ? value : [value]));
  const named = values.map(([parameter, value]) => (parameter.kind === "var_keyword" ? value : { [parameter.name]: value }));
  return Object.assign({}, ...named);
}

// --- answers ----------------------------------------------------------------------------------------------------

function answerBox() {
  return make("div", { class: "answer", role: "status", "aria-live": "polite", "aria-label": "Answer", hidden: true });
}

async function run(box, name, member, options, buttons, stop) {
  const abort = new AbortController();
  const started = performance.now();
  const time = () => `${Math.round(performance.now() - started)} ms`;
  buttons.forEach((button) => (button.disabled = true));
  box.hidden = false;
  box.className = "answer running";
  box.replaceChildren(make("p", { class: "what" }, "Calling…"));
  if (stop) {
    stop.hidden = false;
    stop.onclick = () => abort.abort();
  }
  try {
    const answer = await ask(`pyro/${encoded(name)}/${encodeURIComponent(member)}`, { ...options, signal: abort.signal });
    if ((answer.headers.get("Content-Type") || "").startsWith("application/x-ndjson")) await showItems(box, answer, time);
    else showAnswer(box, answer, await answer.text(), time());
  } catch (error) {
    if (abort.signal.aborted) finish(box, "answer", `Stopped after ${time()}`);
    else finish(box, "answer failed", "The gateway cannot be reached: " + error.message);
  } finally {
    buttons.forEach((button) => (button.disabled = false));
    if (stop) {
      const focused = document.activeElement === stop;
      stop.hidden = true;
      if (focused) buttons[0].focus();
    }
  }
}

function finish(box, kind, text) {
  box.className = kind;
  const what = box.querySelector(".what");
  if (what) what.textContent = text;
}

function showAnswer(box, answer, text, time) {
  let value;
  try {
    value = text === "" ? undefined : JSON.parse(text);
  } catch {
    value = text;
  }
  const failed = !answer.ok;
  box.className = failed ? "answer failed" : "answer";
  const outcome = answer.headers.get("X-Pyro-Outcome");
  const what = failed ? problem(answer, value) : value === undefined ? "Sent; there is no answer" : "Answer";
  const lines = [make("p", { class: "what" }, what)];
  if (!failed && value !== undefined) lines.push(make("pre", { tabindex: "0" }, pretty(text, value)));
  const trace = failed && value && value.attributes && value.attributes._pyroTraceback;
  if (Array.isArray(trace)) lines.push(make("details", {}, make("summary", {}, "Traceback"), make("pre", { tabindex: "0" }, trace.join(""))));
  const facts = [`${answer.status}`, time, outcome && failed ? "outcome " + outcome : ""].filter(Boolean);
  lines.push(make("p", { class: "quiet" }, facts.join(" · ")));
  box.replaceChildren(...lines);
}

// Numbers that JavaScript would round are shown as they came.
function pretty(text, value) {
  const exact = !/\d{16,}/.test(text);
  return exact ? JSON.stringify(value, null, 2) : text;
}

function problem(answer, value) {
  if (value && value.__exception__) return `${String(value.__class__).replace(/^builtins\./, "")}: ${value.text}`;
  return typeof value === "string" ? value : `Status ${answer.status}`;
}

async function showItems(box, answer, time) {
  const list = make("pre", { tabindex: "0", "aria-live": "off" });
  const what = make("p", { class: "what" }, "Items…");
  box.replaceChildren(what, list);
  const kept = [];
  let count = 0;
  for await (const line of pieces(answer.body, "\n")) {
    const value = JSON.parse(line);
    if (value && value.__exception__) {
      finish(box, "answer failed", `${problem(answer, value)} (after ${count} items, ${time()})`);
      return;
    }
    count += 1;
    kept.push(line);
    if (kept.length > state.lines) kept.shift();
    list.textContent = kept.join("\n");
    list.scrollTop = list.scrollHeight;
  }
  finish(box, "answer", `${count} items in ${time()}`);
}

// ----------------------------------------------------------------------------------------------------------------

$("filter").addEventListener("input", showObjects);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value;
  $("key").value = "";
  follow();
});
window.addEventListener("hashchange", fromHash);
follow();
