package sim

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	mutants = flag.Bool("sim.mutants", true, "take each guard off the engine and see that the simulator notices")
	reach   = flag.Int("sim.reach", 4000, "schedules in which a guard that is off must be noticed")
	within  = flag.Duration("sim.within", 45*time.Second, "time in which a guard that is off must be noticed")
	one     = flag.String("sim.mutant", "", "only this one")
)

// guard is something of the engine that keeps a promise. In each file below colo, from is replaced by to, in which OFF is true when the guard is to be
// off. All of them are compiled into one simulator of their own, so that the engine itself needs no switches.
type guard struct {
	name    string
	changes []change
	focus   []Kind // what the schedules that should notice consist of, so that few are enough; all kinds when nil
	bare    bool   // on hosts without a gate in the kernel, which would do the same
	// seeds are schedules that are known to notice. When the engine has changed so much that none does others are tried. Where there are none it needs more
	// schedules than CI has time for: tried when it is named.
	seeds []uint64
}

type change struct{ file, from, to string }

// guardEnv names the one that is off.
const guardEnv = "COLOCTL_SIM_OFF"

var guards = []guard{
	{
		"without an arbiter a copy goes on only when the other one is dead",
		[]change{
			{
				"proof.go",
				"case !counts || there.Running ||", "case !counts || !OFF && there.Running ||",
			},
		},
		nil, false,
		nil,
	},
	{
		"without an arbiter this node's record is written before the peer is told",
		[]change{
			{
				"advance.go",
				"		return next, m.updateNow(context.WithoutCancel(ctx), setRecord(next.Generation, next.Members))",
				"		if OFF {\n\t\t\tm.update(setRecord(next.Generation, next.Members))\n\t\t\treturn next, nil\n\t\t}\n" +
					"		return next, m.updateNow(context.WithoutCancel(ctx), setRecord(next.Generation, next.Members))",
			},
		},
		nil, false,
		[]uint64{Unarbitrated + 21, Unarbitrated + 108},
	},
	{
		"without an arbiter checkpoints that go on end an arbitration",
		[]change{
			{
				"claim.go",
				"m.n.cfg.Arbiter == nil && !k.proof && !k.forced &&", "!OFF && m.n.cfg.Arbiter == nil && !k.proof && !k.forced &&",
			},
		},
		nil, false,
		[]uint64{Unarbitrated + 3, Unarbitrated + 52},
	},
	{
		"without an arbiter a record of the peer's that names this node alone is caught up with",
		[]change{{"proof.go", "if err != nil || there.Generation != rec.Generation+1", "if OFF || err != nil || there.Generation != rec.Generation+1"}},
		nil, false,
		[]uint64{2305843009213771291},
	},
	{
		"a copy that must end is ended before anything else begins",
		[]change{
			{"machine.go", "	if msg.reply != nil && m.following != nil && m.nextPlan == planFence {", "	if !OFF && msg.reply != nil && m.following != nil && m.nextPlan == planFence {"},
			{"ops.go", "			if m.current() != nil { // its end has failed", "			if !OFF && m.current() != nil { // its end has failed"},
		},
		nil, false,
		[]uint64{1882585069259379},
	},
	{
		"a secondary that an earlier run of the node has won for is found out",
		[]change{{"resume.go", "		if err == nil && held.Generation > rec.Generation && wonBy(", "		if !OFF && err == nil && held.Generation > rec.Generation && wonBy("}},
		nil, false,
		[]uint64{1882584199991224},
	},
	{
		"without an arbiter the peer's record is asked for",
		[]change{
			{
				"proof.go",
				"	there, err := m.inquire(ctx)\n	counts", "	there, err := m.inquire(ctx)\n	if OFF {\n\t\terr = ErrNoPeer\n\t}\n	counts",
			},
		},
		nil, false,
		[]uint64{Unarbitrated + 1282},
	},
	{
		"a half that is gone makes the peer's the better one only when that is whole",
		[]change{
			{
				"disk_service.go",
				"	case !m.peerWhole():", "	case !OFF && !m.peerWhole():",
			},
		},
		[]Kind{KillDaemon}, false,
		[]uint64{16},
	},
	{
		"a question that may be on its way to the arbiter is made void",
		[]change{
			{
				"advance.go",
				"next.Members) && (rec.Offered == \"\" ||", "next.Members) && (OFF || rec.Offered == \"\" ||",
			},
		},
		[]Kind{KillDaemon}, false,
		[]uint64{5431},
	},
	{
		"a node that comes back does not outrun the secondary that lives",
		[]change{
			{
				"cold.go",
				"return f.heard && f.there.Running && f.there.State == Secondary", "return !OFF && f.heard && f.there.Running && f.there.State == Secondary",
			},
			{
				"cold.go",
				"return f.heard && f.there.runs() },", "return f.heard && f.there.runs() && (!OFF || f.there.State != Secondary) },",
			},
			{
				"claim_start.go",
				"case err == nil && there.runs():", "case err == nil && there.runs() && (!OFF || there.State != Secondary):",
			},
		},
		[]Kind{PowerOff}, false,
		[]uint64{94},
	},
	{
		"a person's word outlives the arbiter's that it did not hear",
		[]change{
			{
				"settle.go",
				"if rec.Vouched != 0 && (void", "if !OFF && rec.Vouched != 0 && (void",
			},
		},
		[]Kind{Isolate, Force, Switchover, CutArbiter, CutArbiters, MuteArbiter}, false,
		[]uint64{4399},
	},
	{
		"cut the tap before the claim",
		[]change{
			{
				"claim.go",
				"if c := m.current(); c != nil {\n\t\t\tif err := c.Cut(ctx); err != nil {", "if c := m.current(); c != nil && !OFF {\n\t\t\tif err := c.Cut(ctx); err != nil {",
			},
			{
				"machine.go",
				"defer close(done)\n\t\tif err := c.Cut(ctx); err != nil {", "defer close(done)\n\t\tif OFF {\n\t\t} else if err := c.Cut(ctx); err != nil {",
			},
		},
		[]Kind{Isolate, CutAll, CutArbiter, MuteArbiter}, true,
		[]uint64{63, 170, 248, 427, 457},
	},
	{
		"claim by compare-and-set",
		[]change{
			{
				"arbiter/arbiter.go",
				"if next.Generation-1 == current.Generation && current.Has(next.By) {", "if OFF || next.Generation-1 == current.Generation && current.Has(next.By) {",
			},
		},
		nil, false,
		[]uint64{237, 1254, 2130},
	},
	{
		"a report of an older generation is ignored",
		[]change{
			{
				"serve.go",
				"if rec, _ := m.info(); r.Generation >= rec.Generation {", "if rec, _ := m.info(); OFF || r.Generation >= rec.Generation {",
			},
		},
		[]Kind{Twice, Protect, Unprotect, KillQEMU, CutArbiters, CutLink}, false,
		nil,
	},
	{
		"the disks of a promoted secondary count as incomplete",
		[]change{
			{
				"plan_survive.go",
				"m.update(setDisks(spec, false, 0)) // from", "m.update(setDisks(spec, OFF, 0)) // from",
			},
			{
				"plan_survive.go",
				"noted <- m.updateNow(m.n.ctx, setDisks(spec, false, 0))", "noted <- m.updateNow(m.n.ctx, setDisks(spec, OFF, 0))",
			},
		},
		[]Kind{PowerOffBoth, KillQEMU, PowerOff}, false,
		[]uint64{18, 24, 36, 49, 73, 185},
	},
	{
		"an incomplete disk is not started from",
		[]change{
			{
				"claim_start.go",
				"if names := incomplete(rec, spec); len(names) > 0", "if names := incomplete(rec, spec); len(names) > 0 && !OFF",
			},
		},
		[]Kind{PowerOffBoth, KillQEMU, PowerOff}, false,
		[]uint64{24, 49, 73, 185, 209, 364},
	},
	{
		"a yield is stored before the peer is told",
		[]change{
			{
				"plans.go",
				"	if err := m.updateNow(ctx, members([]string{info.Name})); err != nil {",
				"	if OFF {\n\t} else if err := m.updateNow(ctx, members([]string{info.Name})); err != nil {",
			},
		},
		[]Kind{KillQEMU, PowerOff, KillDaemon, CutArbiters, Start}, false,
		nil,
	},
	{
		"a yield leaves alone what was noted meanwhile",
		[]change{{"plans.go", "			if v.Generation == was.Generation {", "			if OFF || v.Generation == was.Generation {"}},
		nil, false,
		[]uint64{2305843009213706623},
	},
	{
		"the peer counts only once COLO is proven",
		[]change{
			{
				"plan_protect.go",
				"				return m.syncDisks(ctx, c, way, to.Name, peer, token, reply.Endpoint)",
				"				if OFF {\n\t\t\t\t\t_, _ = m.admit(ctx, to.Name)\n\t\t\t\t}\n\t\t\t\treturn m.syncDisks(ctx, c, way, to.Name, peer, token, reply.Endpoint)",
			},
		},
		nil, false,
		nil,
	},
	{
		"a bitmap counts only for the disks it is about",
		[]change{
			{
				"resync.go",
				"case rec.Base != nil && rec.Base.Peer == peer && reply.SyncedAt != 0 && reply.SyncedAt == rec.Base.Generation:",
				"case OFF && covered, rec.Base != nil && rec.Base.Peer == peer && reply.SyncedAt != 0 && reply.SyncedAt == rec.Base.Generation:",
			},
		},
		[]Kind{Protect, Unprotect, KillQEMU, PowerOff, CutLink, KillDaemon}, false,
		nil,
	},
	{
		"a resync goes on only where nothing else has written",
		[]change{
			{
				"resync.go",
				"reply.Resync == r.ID && r.Mode == string(blockrepl.Checksum) && len(r.Compared) > 0:",
				"(OFF || reply.Resync == r.ID && r.Mode == string(blockrepl.Checksum)) && len(r.Compared) > 0:",
			},
		},
		nil, false,
		nil,
	},
	{
		"a bitmap resync is on record before it sends anything",
		[]change{
			{
				"resync.go",
				"		v.Base = nil\n", "		if !OFF {\n\t\t\tv.Base = nil\n\t\t}\n",
			},
		},
		nil, false,
		nil,
	},
	{
		"only a peer that is a secondary ends an arbitration",
		[]change{
			{
				"claim.go",
				"return err == nil && there.State == Secondary", "return OFF || err == nil && there.State == Secondary",
			},
		},
		[]Kind{CutAll, CutArbiter, MuteArbiter, StopDaemon, CutOneWay}, false,
		nil,
	},
	{
		"a link dead in one direction counts as lost",
		[]change{
			{
				"watch_peer.go",
				"case ev.Kind == heartbeat.PathDown &&", "case !OFF && ev.Kind == heartbeat.PathDown &&",
			},
		},
		[]Kind{CutOneWay}, false,
		nil,
	},
	{
		"what a plan is told is remembered",
		[]change{
			{
				"machine.go",
				"m.missed = append(m.missed, message{kind: msg.kind, text: msg.text, disk: msg.disk, gen: msg.gen, copy: msg.copy})",
				"if !OFF {\n\t\t\t\tm.missed = append(m.missed, message{kind: msg.kind, text: msg.text, disk: msg.disk, gen: msg.gen, copy: msg.copy})\n\t\t\t}",
			},
		},
		[]Kind{KillQEMU, Unprotect, Switchover, CutArbiter, MuteArbiter}, false,
		nil,
	},
	{
		"a fenced copy is killed",
		[]change{
			{
				"plans.go",
				"\t\t\treturn c.Kill(ctx)\n", "\t\t\tif OFF {\n\t\t\t\treturn nil\n\t\t\t}\n\t\t\treturn c.Kill(ctx)\n",
			},
		},
		nil, false,
		[]uint64{3, 16, 25, 29, 35, 37},
	},
	{
		"the peer is told of a death after it",
		[]change{
			{
				"plans.go",
				"	steps := []Step{{Name: \"end this copy\", Do: m.discard},",
				"	early := func(ctx context.Context) error {\n\t\tif OFF {\n\t\t\treturn m.yield(ctx)\n\t\t}\n\t\treturn nil\n\t}\n" +
					"	steps := []Step{{Name: \"too early\", Do: early}, {Name: \"end this copy\", Do: m.discard},",
			},
		},
		nil, false,
		nil,
	},
	{
		"an arbitration goes on after a restart",
		[]change{
			{
				"resume.go",
				"	case phase == Arbitrating, phase == Detaching,", "	case OFF && phase == Arbitrating:\n\t\tgoOn(map[bool]State{true: Secondary, false: Protected}" +
					"[rec.Role == state.RoleSecondary], \"\", \"\")\n\tcase phase == Arbitrating, phase == Detaching,",
			},
		},
		nil, false,
		[]uint64{13, 184, 318, 388, 431, 593},
	},
	{
		"a loser never goes on",
		[]change{
			{
				"advance.go",
				"	case arbiter.Lost:\n", "	case arbiter.Lost:\n\t\tif OFF {\n\t\t\treturn got, nil\n\t\t}\n",
			},
		},
		[]Kind{CutAll, CutLink, StopDaemon}, false,
		[]uint64{92, 113, 116, 153, 287, 330},
	},
	{
		"a copy without an answer of the arbiter does not go on",
		[]change{
			{
				"claim.go",
				"	return fmt.Errorf(\"%w: %w\", errUndecided, err)\n}", "	if OFF {\n\t\treturn nil\n\t}\n\treturn fmt.Errorf(\"%w: %w\", errUndecided, err)\n}",
			},
		},
		[]Kind{CutAll, CutLink, CutArbiters, CutArbiter, Isolate}, false,
		[]uint64{4, 14, 23, 25, 29, 31},
	},
	{
		"a start asks the arbiter",
		[]change{
			{
				"claim_start.go",
				"	_, err := m.advance(ctx, []string{me})\n	switch {", "	if OFF && rec.Generation > 0 {\n\t\tm.update(setRecord(rec.Generation+1, []string{me}))\n\t\treturn nil\n\t}\n" +
					"	_, err := m.advance(ctx, []string{me})\n	switch {",
			},
		},
		[]Kind{PowerOff, PowerOffBoth, KillQEMU, CutAll, Start}, false,
		[]uint64{189},
	},
	{
		"a winner waits until the loser's lease has ended",
		[]change{
			{
				"claim.go",
				"	if k := m.marked(); p == nil && !several || c == nil || k.proof || k.forced {", "	if k := m.marked(); OFF || p == nil && !several || c == nil || k.proof || k.forced {",
			},
		},
		[]Kind{StopDaemon, KillDaemon, CutAll, CutLink, StopQEMU}, false,
		nil,
	},
	{
		"a start of one of two current copies asks the other node",
		[]change{
			{
				"claim_start.go",
				"	if err != nil || aloneIn(rec, m.n.cfg.Name) {", "	if OFF || err != nil || aloneIn(rec, m.n.cfg.Name) {",
			},
		},
		[]Kind{KillQEMU, Start, PowerOff, CutArbiters}, false,
		nil,
	},
	{
		"the arbiter counts the peer in before the VM is protected",
		[]change{
			{
				"plan_protect.go",
				"		got, err := m.admit(ctx, to.Name)\n", "		got, err := arbiter.Record{Generation: 1}, error(nil)\n\t\tif !OFF {\n\t\t\tgot, err = m.admit(ctx, to.Name)\n\t\t}\n",
			},
		},
		[]Kind{KillQEMU, PowerOff}, false,
		[]uint64{2, 4, 5, 8},
	},
	{
		"an unprotect counts the peer out before it drops it",
		[]change{
			{
				"plan_protect.go",
				"			if got, err = m.advance(ctx, []string{m.n.cfg.Name}); err != nil && !errors.Is(err, errLost) {",
				"			if OFF {\n\t\t\t\trec, _ := m.info()\n\t\t\t\tgot = arbiter.Record{VM: rec.ID, Generation: rec.Generation, Members: []string{m.n.cfg.Name}, By: m.n.cfg.Name}\n" +
					"\t\t\t\treturn nil\n\t\t\t}\n" +
					"			if got, err = m.advance(ctx, []string{m.n.cfg.Name}); err != nil && !errors.Is(err, errLost) {",
			},
		},
		[]Kind{Unprotect, Start, KillQEMU, PowerOff, CutAll}, false,
		[]uint64{31, 1367, 1852, 1866, 2449},
	},
}

// TestMutants takes the guards off one at a time. A simulator that does not notice would not have found the mistake either.
func TestMutants(t *testing.T) {
	if (!*mutants || testing.Short()) && *one == "" {
		t.Skip("compiles a simulator of its own")
	}
	binary := build(t)
	all := time.Now()
	noticed := 0
	for _, g := range guards {
		if *one == "" && len(g.seeds) == 0 || !strings.Contains(g.name, *one) {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			begun := time.Now()
			t.Setenv(guardEnv, g.name)
			enough := func(f *found) bool { return len(f.bad) > 0 }
			known := shard{Seeds: g.seeds, For: *within, Only: g.focus, Bare: g.bare}
			f := &found{}
			if len(g.seeds) > 0 {
				f = play(t, binary, known, enough)
			}
			if len(f.bad) == 0 {
				t.Logf("none of the schedules %v that used to notice does (%v): others are tried", g.seeds, f.died)
				f = play(t, binary, shard{First: 1, N: *reach, For: *within, Only: g.focus, Bare: g.bare}, enough)
			}
			for seed, v := range f.bad {
				s := known.of(seed)
				if r := Run(t, s, false); r.Violation != nil {
					t.Errorf("seed %d: the engine as it is breaks a promise: %v", seed, r.Violation)
				}
				t.Logf("after %s: seed %d: %v", time.Since(begun).Round(time.Millisecond), seed, v)
				noticed++
				return
			}
			t.Errorf("not noticed in %d schedules %v", f.played, f.died)
		})
	}
	t.Logf("%d guards, all in %s", noticed, time.Since(all).Round(time.Second))
	if *one == "" && noticed < 10 {
		t.Errorf("only %d guards were seen to be noticed", noticed)
	}
}

// build makes a simulator in which every guard can be taken off.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	texts := map[string]string{}
	change := func(name string, c change) {
		file, err := filepath.Abs(filepath.Join("..", filepath.FromSlash(c.file)))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := texts[file]; !ok {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			texts[file] = string(text)
		}
		if n := strings.Count(texts[file], c.from); n != 1 {
			t.Fatalf("%s has %d times, not once, what this guard is; it must follow the engine: %s", c.file, n, c.from)
		}
		off := "guardIsOff(" + strconv.Quote(name) + ")"
		texts[file] = strings.Replace(texts[file], c.from, strings.ReplaceAll(c.to, "OFF", off), 1)
	}
	for _, g := range guards {
		for _, c := range g.changes {
			change(g.name, c)
		}
	}
	replace := map[string]string{}
	add := func(path, text string) {
		changed := filepath.Join(dir, strconv.Itoa(len(replace))+".go")
		if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[path] = changed
	}
	for file, text := range texts {
		folder := filepath.Dir(file)
		add(file, text)
		if at := filepath.Join(folder, "guard_off.go"); replace[at] == "" {
			add(at, "package "+filepath.Base(folder)+"\n\nimport \"os\"\n\nvar guardOff = os.Getenv(\""+guardEnv+"\")\n\n"+
				"func guardIsOff(name string) bool { return guardOff == name }\n")
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "sim.test")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay="+list, "-o", binary, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}
