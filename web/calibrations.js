/* DPM-Solver Calibrated's menu, before any run: the text of the file that is set, as its tooltip, and
 * only those files that were made for a model like the connected one.
 *
 * Which model that is follows from the names in its loader. If the pack can't tell, all files are
 * offered. The value that is set is always in the menu.
 */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

async function answerOf(route, question) {
    try {
        const answer = await api.fetchApi(`/dpm_solver/${route}?${new URLSearchParams(question)}`);
        return answer.ok ? await answer.json() : null;
    } catch {
        return null;
    }
}

/* An empty tooltip leaves the one of the node's definition. */
async function explain(widget) {
    const name = widget.value;
    const text = await answerOf("calibration", [["name", name]]);
    if (widget.value === name) widget.tooltip = text || undefined;
}

/* The texts that the loaders of a node's model are set to: of all nodes before it that have no model
 * as their own input. */
function loaderTexts(node, seen = new Set()) {
    if (!node || seen.has(node)) return [];
    seen.add(node);
    const slots = [...(node.inputs ?? []).entries()]
        .filter(([, input]) => input.link != null && (input.type === "MODEL" || input.type === "*"))
        .map(([slot]) => slot);
    if (slots.length) return slots.flatMap((slot) => loaderTexts(node.getInputNode(slot), seen));
    const values = (node.widgets ?? []).map((widget) => widget.value);
    return values.filter((value) => typeof value === "string");
}

const fitting = new Map(); // question -> names, or null for all; a question that is asked has an entry

async function ask(question, node) {
    fitting.set(question, null);
    fitting.set(question, await answerOf("fitting_calibrations", question));
    if (node.widgets?.length) node.widgets.push(node.widgets.pop()); // Vue's nodes read the list again
}

function offered(node, widget, values) {
    const texts = loaderTexts(node.getInputNode(node.findInputSlot("model")));
    const question = new URLSearchParams(texts.map((text) => ["file", text])).toString();
    if (question && !fitting.has(question)) ask(question, node);
    const names = fitting.get(question);
    if (!names || !Array.isArray(values)) return values;
    return values.filter((name) => name === widget.value || names.includes(name));
}

/* The list is read each time a menu is drawn. The page assigns `values` anew when node definitions are
 * refreshed. */
function offerFitting(node, widget) {
    let { values } = widget.options;
    Object.defineProperty(widget.options, "values", {
        configurable: true,
        enumerable: true,
        get: () => offered(node, widget, values),
        set: (given) => {
            values = given;
        },
    });
}

app.registerExtension({
    name: "DPMSolver.Calibrations",
    nodeCreated(node) {
        if (node.comfyClass !== "DPMSolver_Calibrated") return;
        const widget = node.widgets?.find((one) => one.name === "calibration");
        if (!widget) return;
        offerFitting(node, widget);
        const { callback } = widget;
        widget.callback = function (...given) {
            explain(widget);
            return callback?.apply(this, given);
        };
        const { onConfigure } = node;
        node.onConfigure = function (...given) {
            explain(widget);
            return onConfigure?.apply(this, given);
        };
        explain(widget);
    },
    refreshComboInNodes() {
        fitting.clear();
    },
});
