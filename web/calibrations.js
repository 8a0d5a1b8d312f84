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

function questionOf(node) {
    const texts = loaderTexts(node.getInputNode(node.findInputSlot("model")));
    return new URLSearchParams(texts.map((text) => ["file", text])).toString();
}

const answers = new Map(); // question -> its names, null for all files, and the promise of them
const drawn = new Map(); // node -> the names that its menu was drawn with, and what draws it again

async function learn(node) {
    const question = questionOf(node);
    if (question && !answers.has(question)) {
        const answer = { names: null };
        answers.set(question, answer);
        answer.asked = answerOf("fitting_calibrations", question).then((names) => {
            answer.names = names;
        });
    }
    await answers.get(question)?.asked;
    const names = answers.get(question)?.names ?? null;
    const menu = drawn.get(node);
    if (!menu || menu.names === names) return;
    menu.names = names;
    menu.redraw();
}

function offered(node, widget, values) {
    const answer = answers.get(questionOf(node));
    if (!answer || answer.names !== drawn.get(node)?.names) learn(node);
    if (!answer?.names || !Array.isArray(values)) return values;
    return values.filter((name) => name === widget.value || answer.names.includes(name));
}

/* The page assigns `values` anew when node definitions are refreshed. Vue's nodes read it through a
 * proxy, and again when it is assigned through that; older ones when the node's widgets change. */
function offerFitting(node, widget) {
    const { options } = widget;
    let { values } = options;
    const proxies = new Set();
    Object.defineProperty(options, "values", {
        configurable: true,
        enumerable: true,
        get() {
            if (this !== options) proxies.add(this);
            return offered(node, widget, values);
        },
        set(given) {
            values = given;
        },
    });
    const redraw = () => {
        const same = Array.isArray(values) ? [...values] : values;
        for (const proxy of proxies) proxy.values = same;
        node.widgets.push(node.widgets.pop());
    };
    drawn.set(node, { names: null, redraw });
}

/* Another model in the loader, another link. */
api.addEventListener("graphChanged", () => {
    for (const node of drawn.keys()) {
        if (node.graph) learn(node);
        else drawn.delete(node);
    }
});

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
        const { onConnectionsChange } = node;
        node.onConnectionsChange = function (...given) {
            learn(node);
            return onConnectionsChange?.apply(this, given);
        };
        const { onConfigure } = node;
        node.onConfigure = function (...given) {
            explain(widget);
            return onConfigure?.apply(this, given);
        };
        explain(widget);
    },
    refreshComboInNodes() {
        answers.clear();
        for (const node of drawn.keys()) learn(node);
    },
});
