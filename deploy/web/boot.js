// Runs before everything else and needs nothing: has the worker load the network while the page is still loading, and
// says what is wrong where the program itself cannot start.
"use strict";

(function () {
  function show(what, fix) {
    document.getElementById("problem-what").textContent = what;
    document.getElementById("problem-fix").textContent = fix;
    document.getElementById("problem").hidden = false;
    document.getElementById("engine-state").textContent = "not running";
  }

  if (location.protocol !== "file:" && typeof WebAssembly === "object") {
    try {
      var worker = new Worker("worker.js", { type: "module" });
      worker.onerror = function () {
        self.edgeattnEarlyWorker = null; // the program starts another one, and reports
      };
      worker.postMessage({ id: 0, task: "prepare" });
      self.edgeattnEarlyWorker = worker;
    } catch (error) {
      // Too old a browser; the program says so.
    }
  }

  // The program takes this mark away as its first step, which is before DOMContentLoaded.
  document.documentElement.dataset.starting = "yes";

  document.addEventListener("DOMContentLoaded", function () {
    if (location.protocol === "file:") {
      show(
        "This page was opened as a file, and browsers do not let such pages load their program and model.",
        "Serve its folder: run  python -m http.server  in it and open http://localhost:8000/",
      );
      return;
    }
    window.addEventListener("load", function () {
      setTimeout(function () {
        if (document.documentElement.dataset.starting === "yes") {
          show(
            "The page's program did not start.",
            "Check that the whole folder was copied and that the server sends .js files as text/javascript; " +
              "an outdated browser cannot run it either.",
          );
        }
      }, 500);
    });
  });
})();
