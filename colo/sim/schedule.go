package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is what a step of a schedule does.
type Kind string

// Faults, and requests of operators. Those that last are taken back after Step.Lasts.
const (
	KillQEMU     Kind = "kill the QEMU"
	StopQEMU     Kind = "stop the QEMU by a signal"
	KillDaemon   Kind = "kill the daemon"
	StopDaemon   Kind = "stop the daemon by a signal"
	PowerOff     Kind = "power off"
	PowerOffBoth Kind = "power off both"
	Freeze       Kind = "freeze the host"
	CutLink      Kind = "cut the link"
	CutOneWay    Kind = "cut what it sends on the link"
	CutAll       Kind = "cut all links"
	CutArbiter   Kind = "cut it off the arbiter"
	CutArbiters  Kind = "cut both off the arbiter"
	MuteArbiter  Kind = "lose the arbiter's answers"
	Isolate      Kind = "cut all links and it off the arbiter"
	Lossy        Kind = "lose datagrams"
	Slow         Kind = "slow down everything"
	SlowDisk     Kind = "the state folder's disk is slow"
	FullDisk     Kind = "the state folder's disk is full" // in schedules that name it only
	Twice        Kind = "carry out peer calls twice"
	FailOnce     Kind = "let an operation fail"
	GuestOff     Kind = "the guest switches itself off"
	GuestOffEnds Kind = "the guest switches itself off, and a QEMU ends with its guest from now on"
	DiskFails    Kind = "a write to its half of the disk fails"
	LoseConfirms Kind = "lose that the peer's copy counts" // the call to the peer that says so, or its answer
	DarkStart    Kind = "power off both, and no arbiter when they come back"

	Start      Kind = "start"
	Stop       Kind = "stop"
	StopForce  Kind = "stop by force"
	Protect    Kind = "protect"
	Unprotect  Kind = "unprotect"
	Switchover Kind = "switchover"
	Edit       Kind = "edit"
	Delete     Kind = "delete"
	Force      Kind = "power the other host off and force"
)

// Step is one thing that is done to the world.
type Step struct {
	What Kind
	Host int
	// After is the time since the step before. With IO it happens right before that host's IO-th operation from then on instead, so at any
	// step of a plan and any write of its journal; After is then how long that is waited for.
	After time.Duration
	IO    int
	At    int           // the host whose operations are counted
	Lasts time.Duration // until it is taken back; what never ends is taken back at the end
	Arg   int
}

func (s Step) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "n%d: %s", s.Host+1, s.What)
	if s.What == FailOnce {
		fmt.Fprintf(&b, " (%s)", opNames[s.op()])
	}
	if s.Lasts > 0 {
		fmt.Fprintf(&b, " for %s", s.Lasts.Round(time.Microsecond))
	}
	if s.IO > 0 {
		fmt.Fprintf(&b, ", before operation %d of n%d", s.IO, s.At+1)
	} else {
		fmt.Fprintf(&b, ", after %s", s.After.Round(time.Microsecond))
	}
	return b.String()
}

// failing are the operations that FailOnce chooses from.
var failing = []opKind{opStore, opLaunch, opJoin, opQMP, opSync, opMemory, opSwitch, opColo, opRelease, opPromote, opCommit, opClear}

func (s Step) op() opKind { return failing[s.Arg%len(failing)] }

// Schedule is one history of the world. Everything that is random in it follows from Seed.
type Schedule struct {
	Seed      uint64
	Links     int
	Recovery  bool // the nodes act by themselves
	Unsettled bool // the first step comes while the VM is being protected, not after
	NoGate    bool // the hosts have no gate in the kernel: only cut taps hold what COLO doesn't
	NoArbiter bool // none is configured: only proof or a person lets a copy go on
	Steps     []Step
	Tail      time.Duration // until everything is mended
	Last      int           // what the end tries: 0 kill the primary, 1 kill the secondary, 2 switch over
}

type weight struct {
	kind Kind
	n    int
	last bool // it lasts a while
}

// weights of what a schedule does.
var weights = []weight{
	{KillQEMU, 10, false}, {StopQEMU, 4, true}, {KillDaemon, 9, true}, {StopDaemon, 5, true}, {PowerOff, 8, true}, {PowerOffBoth, 2, true},
	{Freeze, 4, true}, {CutLink, 6, true}, {CutOneWay, 3, true}, {CutAll, 6, true}, {CutArbiter, 5, true}, {CutArbiters, 4, true}, {MuteArbiter, 3, true},
	{Isolate, 4, true}, {Lossy, 1, true}, {Slow, 1, true}, {SlowDisk, 3, true}, {Twice, 3, true}, {FailOnce, 3, false}, {GuestOff, 1, false}, {GuestOffEnds, 1, false}, {DiskFails, 3, false},
	{Start, 4, false}, {Stop, 2, false}, {StopForce, 2, false}, {Protect, 9, false}, {Unprotect, 4, false}, {Switchover, 7, false},
	{Edit, 2, false}, {Delete, 1, false}, {Force, 3, false},
}

// weightsLater of what was thought of after the seeds that tests name: only the seeds below have it.
var weightsLater = append(slices.Clip(weights), weight{LoseConfirms, 8, true}, weight{DarkStart, 4, true})

// The highest bits of a seed say which kind of schedule it means. What those without them mean stays as it was.
const (
	Later        uint64 = 1 << 62 // with the faults of weightsLater
	Unarbitrated uint64 = 1 << 61 // with these too, and without an arbiter
)

// mixed makes some of the seeds that have none of these bits have one.
func mixed(seed uint64) uint64 {
	switch {
	case seed >= Unarbitrated:
	case seed%8 == 5:
		seed |= Later
	case seed%4 == 3:
		seed |= Unarbitrated
	}
	return seed
}

// pointless without an arbiter.
var pointless = []Kind{CutArbiter, CutArbiters, MuteArbiter, Isolate, DarkStart}

// Generate makes the schedule of a seed.
func Generate(seed uint64) Schedule { return generate(seed, nil) }

// generate is Generate with only the given kinds of steps; nil is all.
func generate(seed uint64, only []Kind) Schedule {
	r := rand.New(rand.NewPCG(seed, 0x51))
	s := Schedule{Seed: seed, Links: 1 + btoi(r.IntN(4) == 0), Unsettled: r.IntN(5) == 0, Last: r.IntN(3), NoArbiter: seed&Unarbitrated != 0}
	weights, total := weights, 0
	if seed >= Unarbitrated {
		weights = weightsLater
	}
	if s.NoArbiter {
		weights = slices.DeleteFunc(slices.Clone(weights), func(w weight) bool { return slices.Contains(pointless, w.kind) })
	}
	if only != nil {
		weights = slices.DeleteFunc(slices.Clone(weights), func(w weight) bool { return !slices.Contains(only, w.kind) })
	}
	for _, w := range weights {
		total += w.n
	}
	for range 1 + r.IntN(5) {
		n := r.IntN(total)
		i := 0
		for ; n >= weights[i].n; i++ {
			n -= weights[i].n
		}
		st := Step{What: weights[i].kind, Host: r.IntN(2), Arg: r.IntN(1000), After: time.Duration(r.Int64N(int64(800 * time.Millisecond)))}
		if r.IntN(2) == 0 {
			st.At, st.IO, st.After = r.IntN(2), 1+r.IntN(30), 800*time.Millisecond
		}
		if r.IntN(4) == 0 { // close together
			st.After = time.Duration(r.Int64N(int64(20 * time.Millisecond)))
		}
		if weights[i].last {
			st.Lasts = []time.Duration{20 * time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second}[r.IntN(4)]
			st.Lasts += time.Duration(r.Int64N(int64(st.Lasts)))
		}
		s.Steps = append(s.Steps, st)
	}
	s.Tail = []time.Duration{300 * time.Millisecond, 300 * time.Millisecond, time.Second, 2500 * time.Millisecond}[r.IntN(4)]
	s.Recovery = r.IntN(4) == 0
	return s
}
