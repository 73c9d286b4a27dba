"""A web page that solves puzzles with the model in model/: paste one, see the answer, and how it came about step by step."""
import io, json, os
from pathlib import Path
import gradio as gr
from PIL import Image
from trm_nb.data.basics import UserError
from trm_nb.explore.draw import draw_film, draw_grid, draw_halting
from trm_nb.explore.solver import Solver

HERE = Path(__file__).resolve().parent
SOURCE = os.environ.get('TRM_CHECKPOINT_PATH') or HERE/'model'
CARD = json.loads((HERE/'space.json').read_text(encoding='utf-8'))
solver = Solver.from_pretrained(SOURCE)
most = solver.act.settings.halt_max_steps

def image(picture):
    "A figure as an image for the page."
    picture.set_dpi(160)
    return Image.open(io.BytesIO(picture.png()))

def solve(puzzle, steps):
    "Answer, verdict, film and q_halt of a puzzle; a wrong puzzle is told in the verdict."
    try: trace = solver.trace(puzzle, steps=int(steps), identifier=CARD['example']['identifier'])
    except UserError as e: return None, f'**This puzzle cannot be read:** {e}', None, None, ''
    answer = solver.answer_of(trace)
    shown = sorted({round(1 + i * (trace.steps - 1) / 11) for i in range(12)}) if trace.steps > 12 else None
    film = draw_film(trace.answers, solver.look, trace.inputs, q_halt=trace.q_halt, steps=shown)
    grid = draw_grid(trace.answers[-1], solver.look, trace.inputs, confidence=trace.confidence[-1])
    return image(grid), f'**{answer.verdict}**', image(film), image(draw_halting(trace.q_halt)), answer.text

with gr.Blocks(title=CARD['title']) as page:
    gr.Markdown(f"# {CARD['title']}\n\n{CARD['about']}")
    with gr.Row():
        with gr.Column():
            puzzle = gr.Textbox(CARD['example']['puzzle'], label=CARD['hint'], lines=4, elem_id='puzzle')
            steps = gr.Slider(1, max(64, most), most, step=1, label='ACT steps')
            go = gr.Button('Solve', variant='primary', elem_id='solve')
        with gr.Column():
            verdict = gr.Markdown('Its answer: givens bold, unsure cells shaded.', elem_id='verdict')
            grid = gr.Image(show_label=False, height=300, elem_id='answer')
    gr.Markdown('### The answer after each step')
    film = gr.Image(show_label=False, elem_id='film')
    with gr.Row():
        with gr.Column():
            gr.Markdown('### Does the model believe it?')
            halting = gr.Image(show_label=False, height=260)
        with gr.Column():
            gr.Markdown('### The answer as text')
            text = gr.Textbox(show_label=False, lines=6, elem_id='text')
    outputs = [grid, verdict, film, halting, text]
    go.click(solve, [puzzle, steps], outputs)
    puzzle.submit(solve, [puzzle, steps], outputs)
    gr.Markdown(CARD['note'])

if __name__ == '__main__': page.launch(server_name=os.environ.get('GRADIO_SERVER_NAME'), server_port=int(os.environ.get('GRADIO_SERVER_PORT', 7860)))
