// the page works without this: links open and close the panels; it adds the Escape key
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.querySelector(".detail:target")) location.hash = "#closed";
});
