// The button beside a block of commands copies what one types, without prompts and replies.
document.querySelectorAll("code").forEach((block) => {
  const lines = block.textContent.split("\n");
  const typed = lines.filter((line) => /^\d{4}(\(TX\))?> /.test(line)).map((line) => line.replace(/^\d{4}(\(TX\))?> /, ""));
  if (!typed.length) return;
  const button = block.closest("pre")?.parentElement.querySelector("[data-clipboard-target]");
  button?.setAttribute("data-clipboard-text", typed.join("\n") + "\n");
});
