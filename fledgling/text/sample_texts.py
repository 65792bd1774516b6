"""Short texts of several kinds, written for this project, on which tokenizers are compared.

Bytes per token depend on the kind of text: a vocabulary trained on English prose may be poor for code or Korean. These
samples show only the direction; for reliable numbers, give `fledgling tokenizer eval` your own files.
"""

NEWS = """\
The city council voted seven to four on Tuesday evening to close the old harbour bridge to cars for eighteen
months, after engineers found that two of its five piers had moved by almost three centimetres since the
winter floods. Buses and emergency vehicles will be allowed across in one direction at a time. "Nobody
wanted this, but nobody who has read the report could have voted otherwise," said Maria Lindqvist, who
chairs the transport committee. Shop owners on the eastern bank fear for their trade. The repair is expected
to cost 41 million, about a third more than was set aside in March, and the council has asked the region to
pay half of it. A decision is due before the end of the year.
"""

KOREAN = """\
오래된 항구 다리가 내년 봄까지 자동차에 닫힌다. 시의회는 화요일 저녁 회의에서 찬성 일곱 표,
반대 네 표로 이를 결정했다. 기술자들은 지난겨울 홍수 뒤에 교각 두 개가 삼 센티미터 가까이
움직인 것을 발견했다. 버스와 구급차는 한 번에 한 방향으로만 지나갈 수 있다. 동쪽 강가의
상인들은 손님이 줄어들까 걱정하고 있으며, 시는 작은 배를 띄워 사람들을 무료로 건네주기로
하였다. 아이들은 학교에 가는 길이 더 재미있어졌다고 말한다.
"""

CODE = '''\
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Shelf:
    """Books by title, with the number of copies that are in."""

    copies: Counter[str] = field(default_factory=Counter)

    def lend(self, title: str, reader: str) -> bool:
        if self.copies[title] <= 0:
            return False
        self.copies[title] -= 1
        print(f"{reader} takes {title!r}, {self.copies[title]} left")
        return True


def longest_run(values: list[int]) -> int:
    best = run = 0
    for i, value in enumerate(values):
        run = run + 1 if i > 0 and value == values[i - 1] else 1
        best = max(best, run)
    return best


if __name__ == "__main__":
    shelf = Shelf(Counter({"Emma": 2, "Dracula": 0}))
    assert shelf.lend("Emma", "Ida") and not shelf.lend("Dracula", "Ida")
    print(longest_run([1, 1, 2, 2, 2, 3]))  # 3
'''

MATH = r"""
Let $f(x) = x^3 - 6x^2 + 9x + 1$ on the interval $[0, 5]$. Its derivative $f'(x) = 3x^2 - 12x + 9 = 3(x -
1)(x - 3)$ vanishes at $x = 1$ and $x = 3$, where $f(1) = 5$ and $f(3) = 1$; at the ends $f(0) = 1$ and
$f(5) = 21$. So the maximum is 21 and the minimum 1. For the sum $$S_n = \sum_{k=1}^{n} \frac{1}{k(k+1)} = 1
- \frac{1}{n+1}$$ we have $S_{10} = 10/11 \approx 0.9091$ and $\lim_{n \to \infty} S_n = 1$. Finally $17
\times 24 = 408$, $1{,}250 \div 8 = 156.25$, and $\sqrt{2} \approx 1.41421356$; if $A \in \mathbb{R}^{m
\times n}$ has rank $r$, then $\dim \ker A = n - r$.
"""

SCIENCE = """\
Chlorophyll absorbs red and blue light and reflects most of the green, which is why leaves look the way they
do. The absorbed energy lifts electrons to a higher level, and a chain of proteins in the thylakoid membrane
passes them on, pumping protons into the lumen as it does so. The difference in concentration drives ATP
synthase, an enzyme that turns like a small rotor. In the second stage, the Calvin cycle, ATP and NADPH are
spent to bind carbon dioxide into three-carbon sugars. At temperatures above about 35 °C the enzyme rubisco
takes up oxygen instead of carbon dioxide more and more often, and photorespiration costs the plant up to a
quarter of what it has gained.
"""

DIALOGUE = """\
"Are you coming, or shall I tell them you fell asleep over the accounts again?"
"Tell them whatever you like." He did not look up. "Tell them I'm drowned."
"They'd only want to know who's to have your chair." She sat down on the edge of the desk, and for a while
neither of
them said anything. Somewhere below a door banged; someone laughed. "You can't go on like this, you know,"
she said.
"""

SAMPLE_TEXTS = {
    "news": NEWS,
    "dialogue": DIALOGUE,
    "science": SCIENCE,
    "math": MATH,
    "code": CODE,
    "korean": KOREAN,
}
