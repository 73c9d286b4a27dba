"""The page of `trm serve` for the model in model/, as a Space or in a container: choose or draw a puzzle, see the answer, and how it came about step by step."""
import json, os
from pathlib import Path
from trm_nb.serve.app import start

if __name__ == '__main__':
    os.chdir(Path(__file__).resolve().parent)
    card = json.loads(Path('space.json').read_text(encoding='utf-8'))
    host = os.environ.get('GRADIO_SERVER_NAME') or ('0.0.0.0' if 'SPACE_ID' in os.environ else '127.0.0.1')
    start(os.environ.get('TRM_CHECKPOINT_PATH') or 'model', page=card, host=host, port=int(os.environ.get('GRADIO_SERVER_PORT', 7860)))
