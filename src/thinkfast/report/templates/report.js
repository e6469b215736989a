"use strict";
// The budget slider: every lane shows its curve's step at the chosen second, on the curve's own logarithmic range.
const race = JSON.parse(document.getElementById("race-data").textContent);
const slider = document.getElementById("slider");
const shownSeconds = document.getElementById("seconds");
const lanes = [...document.querySelectorAll(".lane")];

function words(seconds) {
  if (seconds >= 120) return Number((seconds / 60).toPrecision(3)) + " min";
  return (seconds < 10 ? Number(seconds.toPrecision(2)) : Math.round(seconds)) + " s";
}

function stepAt(curve, seconds) {
  let at = -1;
  while (at + 1 < curve.t.length && curve.t[at + 1] <= seconds * (1 + 1e-7)) at += 1;
  return at;
}

function draw() {
  const share = slider.value / slider.max;
  const seconds = race.start * Math.pow(race.end / race.start, share);
  shownSeconds.textContent = words(seconds);
  for (const lane of lanes) {
    const curve = race.systems[lane.dataset.system][lane.dataset.metric];
    const at = stepAt(curve, seconds);
    const [value, low, high] = at < 0 ? [0, 0, 0] : [curve.v[at], curve.lo[at], curve.hi[at]];
    lane.querySelector(".bar").style.width = 100 * value + "%";
    const range = lane.querySelector(".range");
    range.style.left = 100 * low + "%";
    range.style.width = 100 * (high - low) + "%";
    lane.querySelector("b").textContent = (100 * value).toFixed(1) + " %";
  }
}

slider.addEventListener("input", draw);
draw();
