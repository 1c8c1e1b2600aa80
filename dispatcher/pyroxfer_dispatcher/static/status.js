"use strict";

let before = null;

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function wrong(text) {
  const place = document.getElementById("wrong");
  place.textContent = text;
  place.hidden = !text;
}

async function command(verb, target) {
  try {
    const answer = await fetch("/command", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ do: verb, target }),
    });
    const told = await answer.json();
    wrong(told.error || "");
  } catch (error) {
    wrong("The dispatcher did not answer: " + error.message);
  }
}

function old(service, backend) {
  const found = before && before.services.find((one) => one.name === service.name);
  return (found && found.backends.find((one) => one.name === backend.name)) || null;
}

function rates(now, service, backend) {
  const last = old(service, backend);
  const seconds = before ? now.up_s - before.up_s : 0;
  if (!last || seconds <= 0) return ["", ""];
  const calls = backend.calls - last.calls;
  const mean = calls > 0 ? (((backend.busy_s - last.busy_s) / calls) * 1000).toFixed(2) + " ms" : "";
  return [(calls / seconds).toFixed(1) + "/s", mean];
}

function milliseconds(seconds) {
  return seconds === null ? "" : Number((seconds * 1000).toPrecision(3)) + " ms";
}

function row(now, service, backend) {
  const target = service.name + "/" + backend.name;
  const made = element("tr", undefined, { "data-target": target, "data-state": backend.state });
  const name = element("td", backend.name);
  name.append(element("small", backend.uri + (backend.origin === "file" ? "" : " from " + backend.origin)));
  const state = element("td", backend.state, { class: "state" });
  if (backend.reason) state.append(element("small", backend.reason));
  made.append(name, state);
  const [rate, mean] = rates(now, service, backend);
  const times = [mean, milliseconds(backend.p50_s), milliseconds(backend.p99_s)];
  for (const text of [backend.in_flight, backend.clients, backend.calls, rate, ...times, backend.weight]) {
    made.append(element("td", String(text)));
  }
  const verb = ["up", "down", "leaving"].includes(backend.state) ? "drain" : "undrain";
  const button = element("button", verb === "drain" ? "Drain" : "Take back", { "aria-label": verb + " " + target });
  button.addEventListener("click", () => command(verb, target));
  const cell = element("td");
  cell.append(button);
  made.append(cell);
  return made;
}

function section(now, service) {
  const made = element("section");
  const calls = Object.entries(service.calls).map(([what, count]) => count + " " + what).join(", ");
  made.append(element("h2", service.name));
  made.append(element("p", `${service.running} under way, ${service.waiting} waiting; ${calls || "no calls yet"}`));
  for (const one of service.discover) {
    const kept = one.state === "lost" ? ` kept (${one.reason})` : "";
    made.append(element("p", `registry ${one.registry}: ${one.state}, ${one.backends} back ends${kept}`));
  }
  const table = element("table");
  const head = element("tr");
  for (const text of ["Back end", "State", "Under way", "Clients", "Calls", "Rate", "Mean", "p50", "p99", "Weight", ""]) {
    head.append(element("th", text, text === "State" ? { class: "state" } : {}));
  }
  table.append(head, ...service.backends.map((backend) => row(now, service, backend)));
  made.append(table);
  return made;
}

function show(now) {
  const focused = document.activeElement && document.activeElement.getAttribute("aria-label");
  document.getElementById("where").textContent = now.object + " at " + now.location;
  document.getElementById("whole").textContent =
    `${now.draining ? "Draining" : "Up"} for ${Math.round(now.up_s)} s, ${now.clients} clients, ` +
    `${now.cut} cut, loop ${(now.lag_s * 1000).toFixed(1)} ms late`;
  document.getElementById("services").replaceChildren(...now.services.map((service) => section(now, service)));
  if (focused) {
    const again = [...document.querySelectorAll("button")].find((one) => one.getAttribute("aria-label") === focused);
    if (again) again.focus();
  }
  before = now;
}

const events = new EventSource("/events");
events.onmessage = (event) => { wrong(""); show(JSON.parse(event.data)); };
events.onerror = () => wrong("The dispatcher does not answer; trying again …");
