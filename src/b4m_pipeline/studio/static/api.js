// What the server is asked. An error is an Error whose message is the line to show.

const HEADER = { "X-B4M-Studio": "1" };
const trouble = () => document.getElementById("trouble");

async function ask(method, path, body, type = "application/json") {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: body === undefined ? HEADER : { ...HEADER, "Content-Type": type },
      body: body === undefined || type !== "application/json" ? body : JSON.stringify(body),
    });
  } catch {
    trouble().textContent = "The studio does not answer. Is `kedro studio` still running in the terminal? This page goes on when it is.";
    trouble().hidden = false;
    throw new Error("The studio does not answer.");
  }
  trouble().hidden = true;
  const told = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) throw new Error(told?.error ?? `The studio answered with status ${answer.status}.`);
  return told;
}

export const get = (path) => ask("GET", path);
export const post = (path, body = {}) => ask("POST", path, body);
export const put = (path, body) => ask("PUT", path, body);
export const remove = (path) => ask("DELETE", path);
export const upload = (path, file) => ask("PUT", path, file, "application/octet-stream");

export const part = encodeURIComponent;

// A page of the registry's adapters: { cards, after }. asked: see CardsRequest; what is empty is not asked for.
export const cards = (asked) => get(`/api/cards?${new URLSearchParams(Object.entries(asked).filter(([, value]) => value))}`);
export const cardPicture = (card) => `/api/cards/${part(card.name)}/${card.version}.png`;

// Ask again and again until `done`; one at a time, and not while the page is hidden.
export function poll(work, pause) {
  let timer, stopped = false;
  const turn = async () => {
    let wait = pause;
    if (!document.hidden) {
      try { if (await work()) return; } catch { wait = 4 * pause; }
    }
    if (!stopped) timer = setTimeout(turn, wait);
  };
  turn();
  return () => { stopped = true; clearTimeout(timer); };
}
