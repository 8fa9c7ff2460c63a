"use strict";
// Without this script the page says the same: every mark has a name, every picture is in its table.
(() => {
  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const pictures = (study, arm) => [...study.querySelectorAll(".samples img")].filter((p) => p.dataset.arm === arm);

  // A mark of a figure shows its arm's first picture while it is pointed at or has the focus.
  const card = element("div", { className: "card", hidden: true });
  card.setAttribute("aria-hidden", "true"); // the mark's own name says it
  document.body.append(card);
  const show = (study, mark) => {
    const [picture] = pictures(study, mark.dataset.arm);
    const [name, rest] = mark.getAttribute("aria-label").split(/: (.*)/s);
    card.replaceChildren(element("b", { textContent: name }), element("span", { textContent: rest }));
    if (picture) card.prepend(element("img", { src: picture.src, alt: "" }));
    card.hidden = false;
    const at = mark.getBoundingClientRect();
    const left = Math.min(at.right + 12, innerWidth - card.offsetWidth - 12);
    const top = Math.min(Math.max(at.top - card.offsetHeight / 2, 12), innerHeight - card.offsetHeight - 12);
    card.style.transform = `translate(${Math.max(left, 12)}px, ${top}px)`;
  };
  const hide = () => { card.hidden = true; };
  for (const study of document.querySelectorAll("[data-study]")) {
    for (const mark of study.querySelectorAll("svg .mark")) {
      mark.addEventListener("pointerenter", () => show(study, mark));
      mark.addEventListener("focus", () => show(study, mark));
      mark.addEventListener("pointerleave", hide);
      mark.addEventListener("blur", hide);
    }
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", hide, { passive: true });

  // Any two arms of a caption, one over the other: a slider uncovers, a button flips.
  for (const study of document.querySelectorAll("[data-study]")) {
    const place = study.querySelector(".compare");
    if (!place) continue;
    const names = [...study.querySelectorAll(".samples thead th[data-arm]")].map((head) => [head.dataset.arm, head.textContent]);
    const rows = [...study.querySelectorAll(".samples tbody tr")].map((row) => ({
      caption: row.querySelector("th").textContent,
      images: new Map([...row.querySelectorAll("img")].map((image) => [image.dataset.arm, image])),
    }));
    if (names.length < 2) continue;
    const options = () => names.map(([value, textContent]) => element("option", { value, textContent }));
    const under = element("select", {}, ...options());
    const over = element("select", {}, ...options());
    under.value = place.dataset.baseline || names[0][0];
    over.value = (names.find(([name]) => name !== under.value) || names[0])[0];
    const slider = element("input", { type: "range", min: 0, max: 100, value: 50 });
    const below = element("img"), above = element("img", { className: "above" });
    const caption = element("p", { className: "caption" });
    caption.setAttribute("aria-live", "polite");
    let row = 0;
    const draw = () => {
      const { caption: text, images } = rows[row];
      for (const [shown, choice] of [[below, under], [above, over]]) {
        const image = images.get(choice.value);
        shown.hidden = !image;
        if (image) Object.assign(shown, { src: image.src, alt: image.alt });
      }
      above.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
      caption.textContent = `${row + 1} of ${rows.length}: ${text}`;
    };
    const button = (textContent, act) => {
      const made = element("button", { type: "button", textContent });
      made.addEventListener("click", () => { act(); draw(); });
      return made;
    };
    const step = (by) => () => { row = (row + by + rows.length) % rows.length; };
    for (const control of [under, over, slider]) control.addEventListener("input", draw);
    place.replaceChildren(
      element("div", { className: "stage" }, below, above),
      element("div", { className: "controls" },
        element("label", {}, "left ", under),
        element("label", {}, "right ", over),
        element("label", {}, "boundary ", slider),
        element("div", {},
          button("Flip", () => { slider.value = Number(slider.value) < 50 ? 100 : 0; }),
          button("Previous caption", step(-1)),
          button("Next caption", step(1))),
        caption));
    place.hidden = false;
    draw();
    study.querySelector(".samples").addEventListener("click", (event) => {
      const image = event.target.closest("img");
      if (!image) return;
      row = rows.findIndex(({ images }) => images.get(image.dataset.arm) === image);
      if (image.dataset.arm !== under.value) over.value = image.dataset.arm;
      draw();
      place.scrollIntoView({ block: "nearest" });
    });
  }
})();
