// Sends the chosen photos to POST /predict, and shows the answers. All text is set as text, never as HTML.
"use strict";

const form = document.getElementById("ask");
const button = form.querySelector("button");
const progress = document.getElementById("progress");
const problem = document.getElementById("problem");
const answers = document.getElementById("answers");
const gallery = answers.querySelector("ul");
const aboutHeatMaps = document.getElementById("about-heat-maps");

const MOST_PHOTOS = 20, MOST_BYTES = 2 ** 26; // of a request, so that answers appear as they arrive

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const files = [...document.getElementById("photos").files];
  const explain = document.getElementById("explain").checked;
  problem.hidden = answers.hidden = aboutHeatMaps.hidden = true;
  gallery.replaceChildren();
  button.disabled = true;
  try {
    for (const portion of portions(files)) {
      const done = gallery.childElementCount;
      progress.textContent = done > 0 ? `${done} of ${files.length} photos classified …` : "Classifying …";
      show(await predict(portion, explain));
    }
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
  } finally {
    progress.textContent = "";
    button.disabled = false;
  }
});

function portions(files) {
  const found = [];
  let bytes = Infinity;
  for (const file of files) {
    bytes += file.size;
    if (bytes > MOST_BYTES || found.at(-1).length === MOST_PHOTOS) {
      found.push([]);
      bytes = file.size;
    }
    found.at(-1).push(file);
  }
  return found;
}

async function predict(files, explain) {
  const body = new FormData();
  for (const file of files) body.append("photos", file);
  let response;
  try {
    response = await fetch(`predict?images=true&explain=${explain}`, { method: "POST", body });
  } catch {
    throw new Error("The server does not answer; is it still running?");
  }
  const result = await response.json();
  if (!response.ok) throw new Error(result.error);
  return result;
}

function show(photos) {
  gallery.append(...photos.map((photo) => element("li", {}, element("figure", {}, ...parts(photo)))));
  if (gallery.querySelector(".heat-maps")) aboutHeatMaps.hidden = false;
  answers.hidden = false;
}

function parts(photo) {
  if (photo.unreadable) {
    const reason = element("strong", { className: "wrong" }, photo.unreadable);
    return [element("figcaption", { role: "alert" }, photo.photo, element("br"), reason)];
  }
  const alt = `${photo.photo}, as the networks saw it`;
  const caption = element("figcaption", {}, photo.photo, ...answer(photo), members(photo));
  return [element("img", { src: photo.image, alt, width: 160, height: 160 }), ...heatMaps(photo), caption];
}

function heatMaps(photo) {
  const maps = Object.entries(photo.heat_maps ?? {}).map(([network, src]) => {
    const alt = `Where ${network} looked on ${photo.photo}`;
    return element("img", { src, alt, title: network, width: 80, height: 80 });
  });
  return maps.length > 0 ? [element("div", { className: "heat-maps" }, ...maps)] : [];
}

function answer(photo) {
  const best = mostProbable(photo.probabilities, photo.label);
  const shown = best.slice(0, best.length > 2 ? 2 : 1); // with two classes, the second one says nothing new
  const lines = shown.map(([label, probability]) => `${label} ${percent(probability)}`);
  if (photo.none_of_these) lines.unshift("none of these");
  const [first, ...others] = lines;
  const lead = element("p", { className: "lead" }, element("strong", {}, first));
  return [lead, ...others.map((line) => element("p", {}, line))];
}

function members(photo) {
  const networks = "members" in gallery.dataset ? Object.entries(photo.members) : [];
  const lines = networks.flatMap(([network, probabilities]) => {
    const [label, probability] = mostProbable(probabilities)[0];
    return [element("dt", {}, network), element("dd", {}, `${label} ${percent(probability)}`)];
  });
  return element("dl", {}, ...lines);
}

// The classes and their probabilities, the most probable first; `label` is known to be the most probable.
function mostProbable(probabilities, label) {
  const sorted = Object.entries(probabilities).sort(([, one], [, other]) => other - one);
  return sorted.sort(([one], [other]) => (one === label ? -1 : other === label ? 1 : 0));
}

// 0.98131 as "98.1 %", with a no-break space; never 100 % or 0 %, which would claim to be certain.
function percent(share) {
  if (share >= 0.9995) return "> 99.9\u00a0%";
  if (share < 0.0005) return "< 0.1\u00a0%";
  return `${(100 * share).toFixed(1)}\u00a0%`;
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
