package witness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/arbitertest"
)

// stage plays one history of calls to two witnesses. Whoever sends a message waits for the stage, which alone decides what happens next, by
// numbers from a seed: a request is carried out, or lost, or arrives long after its sender has given up; an answer comes, late or never; a
// process is killed and started with its ledger; a node hears nothing of a witness for a while. One seed gives one history.
type stage struct {
	rand  *rand.Rand
	rates rates
	w     [2]*memory

	mu      sync.Mutex
	queue   []*message // with somebody waiting for each
	late    []*message // whose senders don't wait any more
	lives   map[string]*life
	down    map[string]*[2]bool // by node
	rank    []int               // by who waits, see pick
	tending map[string]bool
	ended   sync.WaitGroup

	believed map[uint64]uint64 // by tenure, the newest version that some call's answer came from
	taken    map[uint64]uint64 // by tenure, the version that the next seat has taken over
}

// errBelieved: a node was told what the next seat doesn't know of. It is found long before anybody does something that shows it.
var errBelieved = errors.New("an answer was given that isn't true for the next seat")

// rates of what happens, in 1000 steps; each history has its own.
type rates struct {
	kill, link, outage, tend, arrive int // of all steps
	lose, delay                      int // of messages on a link that is up
	ranked                           bool
}

// message is a request, then its answer.
type message struct {
	life    *life
	who     int
	place   int
	vm      string
	req     request
	carried bool // by the witness: what is on its way now is the answer
	ans     answer
	err     error
	back    chan struct{}
}

// life is a node's process, from a start to a kill.
type life struct {
	stage *stage
	node  string
	dead  bool // guarded by the stage's mu
	pair  *Pair
	pages map[string]page // of all lives of the node
}

const stageVM = "vm0"

var stageNodes = []string{"a", "b", "c"}

func newStage(seed uint64, t tamper) *stage {
	r := rand.New(rand.NewPCG(seed, 1))
	s := &stage{
		rand: r, w: [2]*memory{newMemory("w1"), newMemory("w2")}, lives: map[string]*life{}, down: map[string]*[2]bool{}, tending: map[string]bool{},
		believed: map[uint64]uint64{}, taken: map[uint64]uint64{},
		rates: rates{kill: r.IntN(10), link: 5 + r.IntN(40), outage: 5 + r.IntN(20), tend: 20 + r.IntN(150), arrive: r.IntN(40), lose: r.IntN(20), delay: r.IntN(40), ranked: r.IntN(2) == 0},
	}
	for i := range s.w {
		s.w[i].tamper = t
	}
	for _, n := range stageNodes {
		s.down[n] = &[2]bool{}
		s.begin(n, map[string]page{})
	}
	return s
}

func (s *stage) begin(node string, pages map[string]page) {
	l := &life{stage: s, node: node, pages: pages}
	a, b := service(wire{l, 0}), service(wire{l, 1})
	if node > "a" {
		a, b = b, a // the order must not matter
	}
	l.pair = newPair(a, b, node, l, PairOptions{Log: quiet})
	s.lives[node] = l
}

// errKilled is what a process meets after its end; nobody hears of it.
var errKilled = errors.New("killed")

func (l *life) load(vm string) (page, bool, error) {
	l.stage.mu.Lock()
	defer l.stage.mu.Unlock()
	p, ok := l.pages[vm]
	p.Pending = slices.Clone(p.Pending)
	return p, ok, nil
}

func (l *life) save(vm string, p page) error {
	l.stage.mu.Lock()
	defer l.stage.mu.Unlock()
	if l.dead {
		return errKilled
	}
	p.Pending = slices.Clone(p.Pending)
	l.pages[vm] = p
	return nil
}

func (l *life) drop(vm string) error {
	l.stage.mu.Lock()
	defer l.stage.mu.Unlock()
	if l.dead {
		return errKilled
	}
	delete(l.pages, vm)
	return nil
}

func (l *life) vms() ([]string, error) { return slices.Collect(maps.Keys(l.pages)), nil }
func (l *life) close() error           { return nil }

// wire leads from a process to a witness.
type wire struct {
	life  *life
	place int
}

type whoKey struct{}

func (w wire) name() string { return w.life.stage.w[w.place].id }

func (w wire) once(ctx context.Context, vm string, req request) (answer, error) {
	m := &message{life: w.life, who: ctx.Value(whoKey{}).(int), place: w.place, vm: vm, req: req.copy()}
	w.life.stage.post(m)
	return m.ans, m.err
}

// mine needs no turn: what is heard by it isn't believed.
func (w wire) mine(context.Context) (membership, error) {
	s := w.life.stage
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.life.dead || s.down[w.life.node][w.place] {
		return membership{}, unreachable(errors.New("no way"))
	}
	return s.w[w.place].mine(w.life.node), nil
}

// post returns when the stage has done with a message. One without a life only waits for its turn.
func (s *stage) post(m *message) {
	s.mu.Lock()
	if m.life != nil && m.life.dead {
		m.err = unreachable(errKilled)
		s.mu.Unlock()
		return
	}
	m.back = make(chan struct{})
	s.queue = append(s.queue, m)
	s.mu.Unlock()
	<-m.back
}

// player is the arbiter as one client of a node sees it.
type player struct {
	stage *stage
	node  string
	who   int
}

func (p player) pair() *Pair {
	p.stage.mu.Lock()
	defer p.stage.mu.Unlock()
	return p.stage.lives[p.node].pair
}

func (p player) ctx(ctx context.Context) context.Context {
	return context.WithValue(ctx, whoKey{}, p.who)
}

func (p player) Get(ctx context.Context, vm string) (arbiter.Record, error) {
	got, err := p.pair().Get(p.ctx(ctx), vm)
	p.believe(vm, err)
	return got, err
}

func (p player) Advance(ctx context.Context, next arbiter.Record) (arbiter.Record, error) {
	got, err := p.pair().Advance(p.ctx(ctx), next)
	p.believe(next.VM, err)
	return got, err
}

func (p player) Forget(ctx context.Context, vm string, g uint64) error {
	err := p.pair().Forget(p.ctx(ctx), vm, g)
	p.believe(vm, err)
	return err
}

// believe notes on what an answer of the pair rests: the node's page says it.
func (p player) believe(vm string, err error) {
	p.stage.mu.Lock()
	defer p.stage.mu.Unlock()
	if pg, ok := p.stage.lives[p.node].pages[vm]; ok && !errors.Is(err, arbiter.ErrUnreachable) {
		t := pg.Seat.Tenure
		p.stage.believed[t] = max(p.stage.believed[t], pg.Seat.Version)
	}
}

// step lets one thing happen. All others stand still, and the stage's mu is held.
func (s *stage) step() {
	n := s.rand.IntN(1000)
	hit := func(rate int) bool {
		n -= rate
		return n < 0
	}
	node := stageNodes[s.rand.IntN(len(stageNodes))]
	switch {
	case hit(s.rates.kill):
		s.kill(node)
	case hit(s.rates.link):
		i := s.rand.IntN(2)
		s.down[node][i] = !s.down[node][i] && s.rand.IntN(3) > 0
		s.tend(node)
	case hit(s.rates.outage): // of one witness, and everybody notices; or all is mended
		down := [2]bool{}
		if i := s.rand.IntN(4); i < 2 {
			down[i] = true
		}
		for _, n := range stageNodes {
			*s.down[n] = down
			s.tend(n)
		}
	case hit(s.rates.tend):
		s.tend(node)
	case hit(s.rates.arrive) && len(s.late) > 0:
		i := s.rand.IntN(len(s.late))
		s.carry(s.late[i])
		s.late = slices.Delete(s.late, i, i+1)
	default:
		s.move(s.pick())
	}
}

// pick chooses a message. If the history is a ranked one, that of the waiting one with the highest rank, which may change: so it comes
// that somebody stands still in the middle of something while others do a lot.
func (s *stage) pick() *message {
	slices.SortFunc(s.queue, func(a, b *message) int { return cmp.Or(a.who-b.who, a.place-b.place) })
	if !s.rates.ranked {
		return s.queue[s.rand.IntN(len(s.queue))]
	}
	m := slices.MaxFunc(s.queue, func(a, b *message) int { return s.rankOf(a.who) - s.rankOf(b.who) })
	if s.rand.IntN(8) == 0 {
		s.rank[m.who] = s.rand.Int()
	}
	return m
}

func (s *stage) rankOf(who int) int {
	for len(s.rank) <= who {
		s.rank = append(s.rank, s.rand.Int())
	}
	return s.rank[who]
}

func (s *stage) move(m *message) {
	switch n := s.rand.IntN(1000); {
	case m.life == nil:
		s.answer(m, nil)
	case s.down[m.life.node][m.place], n < s.rates.lose+s.rates.delay:
		if n%(s.rates.lose+s.rates.delay+1) >= s.rates.lose {
			s.delay(m)
		}
		s.answer(m, unreachable(errors.New("no answer")))
	case m.carried:
		s.answer(m, m.err)
	default:
		s.carry(m)
	}
}

// delay lets a request arrive later, without its sender.
func (s *stage) delay(m *message) {
	if !m.carried {
		s.late = append(s.late, &message{life: m.life, place: m.place, vm: m.vm, req: m.req})
	}
}

func (s *stage) carry(m *message) {
	defer func(before uint64) {
		if e := s.w[m.place].entries[m.vm]; e.Tenure > 1 && e.Tenure > before {
			s.taken[e.Tenure-1] = e.Version - 1
		}
	}(s.w[m.place].entries[m.vm].Tenure)
	m.ans, m.err = s.w[m.place].do(m.vm, m.req, m.life.node)
	m.carried = true
}

// answer lets the one who waits for a message go on.
func (s *stage) answer(m *message, err error) {
	if m.err = err; err != nil {
		m.ans = answer{}
	}
	s.queue = slices.DeleteFunc(s.queue, func(o *message) bool { return o == m })
	close(m.back)
}

// kill ends a node's process in the middle of what it does, and starts it again.
func (s *stage) kill(node string) {
	l := s.lives[node]
	l.dead = true
	for _, m := range slices.Clone(s.queue) {
		if m.life == l {
			if s.rand.IntN(2) == 0 {
				s.delay(m)
			}
			s.answer(m, unreachable(errKilled))
		}
	}
	s.begin(node, l.pages)
}

// tend lets a node look after its witnesses as Run does.
func (s *stage) tend(node string) {
	if s.tending[node] {
		return
	}
	s.tending[node] = true
	l := s.lives[node]
	ctx := context.WithValue(context.Background(), whoKey{}, slices.Index(stageNodes, node))
	s.ended.Go(func() {
		_ = l.pair.acquaint(ctx)
		_ = l.pair.tend(ctx, stageVM, func(i int) (alive, dead bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			d := s.down[node][l.pair.svc[i].(wire).place]
			return !d, d
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		s.tending[node] = false
	})
}

// wait lets things happen until something has ended.
func (s *stage) wait(do func()) {
	done := make(chan struct{})
	go func() { do(); close(done) }()
	for {
		synctest.Wait()
		select {
		case <-done:
			return
		default:
		}
		s.mu.Lock()
		if len(s.queue) == 0 {
			panic("all wait, and nobody for the stage")
		}
		s.step()
		s.mu.Unlock()
	}
}

// play returns what the check says of the history of a seed, and how often the seat has moved. It has to be called in a bubble.
func (s *stage) play(ctx context.Context, seed uint64) (moves int, err error) {
	clients := 1 + int(seed%2)
	who := len(stageNodes)
	run := arbitertest.Run{
		View: func(n string) arbiter.Arbiter {
			who++
			return player{s, n, who - 1}
		},
		Turn:  func(client int) { s.post(&message{who: len(stageNodes) + client}) },
		Nodes: stageNodes, Clients: clients, Calls: 16 / clients, VMs: 1, Gets: 1 + s.rand.IntN(4), Forgets: 1 + s.rand.IntN(3), Unknown: 5, Seed: seed, CallTimeout: time.Hour,
	}
	s.wait(func() {
		if seed%3 == 0 {
			err = run.Check(ctx)
		} else {
			err = run.Play(ctx)
		}
	})
	for tenure, version := range s.taken {
		if b := s.believed[tenure]; err == nil && b > version {
			err = fmt.Errorf("%w: version %d of tenure %d, which ended with %d", errBelieved, b, tenure, version)
		}
	}
	for _, w := range s.w {
		moves = max(moves, int(w.entries[stageVM].Tenure)-1)
	}
	if herr := s.heal(ctx); err == nil && s.w[0].tamper == nil { // broken rules may hold things up
		err = herr
	}
	return moves, err
}

// heal mends everything, and checks that each node gets an answer then: that nothing holds for ever.
func (s *stage) heal(ctx context.Context) (err error) {
	s.rates = rates{}
	for _, n := range stageNodes {
		*s.down[n] = [2]bool{}
	}
	s.wait(s.ended.Wait)
	for i, n := range stageNodes {
		s.wait(func() {
			if _, gerr := (player{s, n, len(stageNodes) + i}).Get(ctx, stageVM); gerr != nil && !errors.Is(gerr, arbiter.ErrNoRecord) {
				err = fmt.Errorf("%s has no answer after everything was mended: %w", n, gerr)
			}
		})
	}
	return err
}

// plays runs histories until one isn't explained. moved says in how many the seat has moved.
func plays(t *testing.T, n uint64, tamper tamper) (moved int, err error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // one at a time does something: on a loaded machine, waking another processor for it takes most of the time
	for seed := uint64(0); seed < n && err == nil; seed++ {
		synctest.Test(t, func(t *testing.T) {
			var moves int
			if moves, err = newStage(seed, tamper).play(t.Context(), seed); err != nil {
				err = fmt.Errorf("seed %d: %w", seed, err)
			}
			moved += min(moves, 1)
		})
	}
	return moved, err
}
