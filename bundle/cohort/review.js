// Copyright (c) the PLAN bundle contributors
// SPDX-License-Identifier: Apache-2.0
// Names of images and classes come from elsewhere: they are only ever set as text, never as HTML.
"use strict";
(() => {
  const cohort = JSON.parse(document.getElementById("cohort").textContent);
  const pictures = document.getElementsByClassName("picture");
  const total = cohort.images.length;
  const reasons = cohort.reasons.map(([reason]) => reason);
  const storageKey = `plan-review-${cohort.images_sha256}`;
  const element = (id) => document.getElementById(id);

  // What has been decided of each image: the decision, the reason and the comment.
  let decisions = cohort.images.map(() => ["", "", ""]);
  // Decisions of this visit in their order, each with what was there before.
  const past = [];
  let current = 0;
  let isKept = true;
  let isSaved = true;

  const isDecision = (decision, reason) =>
    (decision === "reject" && reasons.includes(reason)) || (["", "accept"].includes(decision) && reason === "");

  function keep() {
    isSaved = false;
    try {
      localStorage.setItem(storageKey, JSON.stringify({ decisions, reviewer: element("reviewer").value }));
    } catch {
      isKept = false;
      tell("This browser keeps no decisions. Save review.csv before you close the page.");
    }
  }

  function recall() {
    try {
      const kept = JSON.parse(localStorage.getItem(storageKey));
      if (kept !== null && kept.decisions.length === total && kept.decisions.every(([d, r]) => isDecision(d, r))) {
        decisions = kept.decisions.map(([decision, reason, comment]) => [decision, reason, String(comment)]);
        element("reviewer").value = String(kept.reviewer);
      }
    } catch {
      isKept = false;
      tell("This browser keeps no decisions. Save review.csv before you close the page.");
    }
  }

  function tell(text) {
    element("notice").textContent = text;
    element("notice").hidden = text === "";
  }

  const numberOf = (wanted) => decisions.filter(([decision]) => decision === wanted).length;

  function nextOpen() {
    for (let step = 1; step <= total; step++) {
      const place = (current + step) % total;
      if (decisions[place][0] === "") return place;
    }
    return current;
  }

  const address = (place) => `data:image/png;base64,${pictures[place].textContent}`;

  function show(place) {
    const squares = element("map").children;
    squares[current].classList.remove("here");
    current = Math.min(Math.max(place, 0), total - 1);
    squares[current].classList.add("here");
    element("map").scrollTop = squares[current].offsetTop - element("map").clientHeight / 2;
    element("picture").src = address(current);
    new Image().src = address((current + 1) % total); // decoded by the time it is wanted
    element("label").textContent = cohort.images[current].label_name;
    element("name").textContent = `${current + 1} of ${total}: ${cohort.images[current].image}`;
    element("comment").value = decisions[current][2];
    element("reasons").classList.remove("asked");
    draw();
  }

  function draw() {
    const [decision, reason] = decisions[current];
    const words = { "": "", accept: "accepted", reject: `rejected: ${new Map(cohort.reasons).get(reason)}` };
    element("decision").textContent = words[decision];
    element("decision").className = element("stage").className = decision;
    const open = numberOf("");
    element("progress").value = total - open;
    element("counts").textContent =
      `${total - open} of ${total} reviewed: ${numberOf("accept")} accepted, ${numberOf("reject")} rejected`;
    decisions.forEach(([each], place) => {
      const square = element("map").children[place];
      for (const kind of ["accept", "reject"]) square.classList.toggle(kind, each === kind);
    });
  }

  function decide(decision, reason) {
    past.push([current, decisions[current]]);
    decisions[current] = [decision, reason, decisions[current][2]];
    keep();
    if (isKept) tell(numberOf("") === 0 ? "Every image is reviewed. Save review.csv (S)." : "");
    show(reason === "other" ? current : nextOpen());
    if (reason === "other") element("comment").focus();
  }

  function undo() {
    if (past.length === 0) return;
    const [place, [decision, reason]] = past.pop();
    decisions[place] = [decision, reason, decisions[place][2]];
    keep();
    show(place);
  }

  function askReason() {
    element("reasons").classList.add("asked");
    tell(`Why? Choose a reason (1 to ${reasons.length}).`);
  }

  // A text that a spreadsheet would take for a formula gets an apostrophe in front.
  const formula = /^[\s']*[=+\-@\uFF1D\uFF0B\uFF0D\uFF20]/;

  function cell(text) {
    const safe = formula.test(text) ? `'${text}` : text;
    return /[",;\t\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  const withoutMark = (text) => (text[0] === "'" && formula.test(text) ? text.slice(1) : text).replace(/\s+/g, " ");

  function save() {
    const reviewer = element("reviewer").value;
    const lines = cohort.images.map(({ cells }, place) => {
      const [decision, reason, comment] = decisions[place];
      return [cells, decision, reason, cell(comment), cell(decision === "" ? "" : reviewer)].join(",");
    });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${cohort.columns.join(",")}\n${lines.join("\n")}\n`], { type: "text/csv" }));
    link.download = "review.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    isSaved = true;
    const open = numberOf("");
    tell(`review.csv is saved where this browser puts downloads.${open ? ` Not reviewed yet: ${open}.` : ""}`);
  }

  function parse(text) {
    const mark = [",", ";", "\t"].find((each) => text.split("\n")[0].includes(each)) ?? ",";
    const rows = [[""]];
    let isQuoted = false;
    for (let place = 0; place < text.length; place++) {
      const letter = text[place];
      const row = rows[rows.length - 1];
      if (letter === '"') {
        if (isQuoted && text[place + 1] === '"') row[row.length - 1] += text[place++];
        else isQuoted = !isQuoted;
      } else if (letter === mark && !isQuoted) row.push("");
      else if (letter === "\n" && !isQuoted) rows.push([""]);
      else if (letter !== "\r") row[row.length - 1] += letter;
    }
    return rows;
  }

  async function load(file) {
    const [head, ...rows] = parse((await file.text()).replace(/^\uFEFF/, ""));
    const places = cohort.columns.map((column) => head.map((name) => name.trim()).indexOf(column));
    const known = new Map(cohort.images.map(({ cells }, place) => [JSON.stringify(parse(cells)[0]), place]));
    let taken = 0;
    for (const row of places.includes(-1) ? [] : rows) {
      const [image, sha256, labelName, decision, reason, comment, reviewer] = places.map((place) => row[place] ?? "");
      const place = known.get(JSON.stringify([image, sha256, labelName]));
      if (place === undefined || decision === "" || !isDecision(decision, reason)) continue;
      decisions[place] = [decision, reason, withoutMark(comment)];
      if (element("reviewer").value === "") element("reviewer").value = withoutMark(reviewer);
      taken++;
    }
    if (taken > 0) keep();
    show(decisions[current][0] === "" ? current : nextOpen());
    tell(
      taken === 0
        ? "This file holds no decision about an image of this cohort."
        : `Decisions taken over: ${taken}. Not reviewed yet: ${numberOf("")}.`,
    );
  }

  const leave = () => document.activeElement.blur();
  const actions = {
    a: () => decide("accept", ""),
    r: askReason,
    u: undo,
    backspace: undo,
    c: () => element("comment").focus(),
    n: () => show(nextOpen()),
    s: save,
    arrowleft: () => show(current - 1),
    arrowright: () => show(current + 1),
    home: () => show(0),
    end: () => show(total - 1),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target instanceof HTMLInputElement) {
      if (event.key === "Escape" || event.key === "Enter") leave();
      if (event.key === "Enter" && event.target.id === "comment" && decisions[current][0] !== "") show(nextOpen());
      return;
    }
    // By its place on the keyboard: on some, digits need the shift key.
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
    const key = event.key.toLowerCase();
    const reason = digit === null ? undefined : reasons[digit[1] - 1];
    const action = reason === undefined ? actions[key] : () => decide("reject", reason);
    if (action === undefined) return;
    event.preventDefault();
    // A key that is held down turns the pages, but decides nothing of images that nobody has seen.
    if (!event.repeat || key.startsWith("arrow")) action();
  });

  cohort.reasons.forEach(([reason, words], place) => {
    const button = document.createElement("button");
    const key = document.createElement("kbd");
    button.type = "button";
    key.textContent = place + 1;
    button.append(key, ` ${words}`);
    button.addEventListener("click", () => decide("reject", reason));
    element("reasons").append(button);
  });
  cohort.images.forEach(({ image }) => {
    const square = document.createElement("span");
    square.title = image;
    element("map").append(square);
  });
  element("map").addEventListener("click", (event) => {
    const place = [...element("map").children].indexOf(event.target);
    if (place >= 0) show(place);
  });
  const clicks = { accept: "a", reject: "r", previous: "arrowleft", next: "arrowright", pending: "n", clear: "u", save: "s" };
  for (const [id, key] of Object.entries(clicks)) {
    element(id).addEventListener("click", () => {
      leave(); // or the space bar would press the button again
      actions[key]();
    });
  }
  element("load").addEventListener("click", () => element("file").click());
  element("file").addEventListener("change", () => {
    if (element("file").files.length > 0) load(element("file").files[0]);
    element("file").value = "";
  });
  element("comment").addEventListener("input", () => {
    decisions[current][2] = element("comment").value;
    keep();
  });
  element("reviewer").addEventListener("input", keep);
  element("picture").addEventListener("error", () => tell("This image cannot be shown. Reject it, or write the page anew."));
  // The same page in another window: the last decision counts in both.
  addEventListener("storage", (event) => {
    if (event.key !== storageKey) return;
    recall();
    show(current);
  });
  addEventListener("beforeunload", (event) => {
    if (!isKept && !isSaved) event.preventDefault();
  });

  recall();
  show(decisions[0][0] === "" ? 0 : nextOpen());
})();
