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
	mutants = flag.Bool("sim.mutants", os.Getenv("CI") == "true", "take each guard off the engine and see that the simulator notices")
	reach   = flag.Int("sim.reach", 20000, "schedules in which a guard that is off must be noticed")
	within  = flag.Duration("sim.within", 45*time.Second, "time in which a guard that is off must be noticed")
	one     = flag.String("sim.mutant", "", "only this one")
)

// guard is something of the engine that keeps a promise. In a file below colo, from is replaced by to, in which OFF is true when the guard is to be
// off. All of them are compiled into one simulator of their own, so that the engine itself needs no switches.
type guard struct {
	name     string
	file     string
	from, to string
	focus    []Kind // what the schedules that should notice consist of, so that few are enough; all kinds when nil
	rare     bool   // more schedules are needed than CI has time for: tried when it is named
}

// guardEnv names the one that is off.
const guardEnv = "COLOCTL_SIM_OFF"

var guards = []guard{
	{
		"cut the tap before the claim", "plan_survive.go",
		"if c := m.current(); c != nil {\n\t\t\tif err := c.Cut(ctx); err != nil {", "if c := m.current(); c != nil && !OFF {\n\t\t\tif err := c.Cut(ctx); err != nil {",
		[]Kind{StopDaemon, CutArbiter, CutAll, MuteArbiter, KillDaemon, StopQEMU}, false,
	},
	{
		"claim by compare-and-set", "arbiter/arbiter.go",
		"if next.Generation-1 == current.Generation && current.Has(next.By) {", "if OFF || next.Generation-1 == current.Generation && current.Has(next.By) {",
		nil, false,
	},
	{
		"a report of an older generation is ignored", "serve.go",
		"if rec, _ := m.info(); r.Generation >= rec.Generation {", "if rec, _ := m.info(); OFF || r.Generation >= rec.Generation {",
		[]Kind{Twice, Protect, Unprotect, KillQEMU, CutArbiters, CutLink}, false,
	},
	{
		"the disks of a promoted secondary count as incomplete", "plan_survive.go",
		"noted <- m.updateNow(m.n.ctx, setDisks(spec, false, 0))", "noted <- m.updateNow(m.n.ctx, setDisks(spec, OFF, 0))",
		[]Kind{PowerOffBoth, KillQEMU, PowerOff}, false,
	},
	{
		"an incomplete disk is not started from", "plan_survive.go",
		"if names := incomplete(rec, spec); len(names) > 0", "if names := incomplete(rec, spec); len(names) > 0 && !OFF",
		[]Kind{PowerOffBoth, KillQEMU, PowerOff}, false,
	},
	{
		"a yield is stored before the peer is told", "plans.go",
		"	if err := m.updateNow(ctx, func(v *state.VM) { v.Members = []string{info.Name} }); err != nil {",
		"	if OFF {\n\t} else if err := m.updateNow(ctx, func(v *state.VM) { v.Members = []string{info.Name} }); err != nil {",
		[]Kind{KillQEMU, PowerOff, KillDaemon, CutArbiters, Start}, false,
	},
	{
		"the peer counts only once COLO is proven", "plan_protect.go",
		"				return m.syncDisks(ctx, c, way, peer, token, reply.Endpoint)",
		"				if OFF {\n\t\t\t\t\t_, _ = m.admit(ctx, to.Name)\n\t\t\t\t}\n\t\t\t\treturn m.syncDisks(ctx, c, way, peer, token, reply.Endpoint)",
		nil, false,
	},
	{
		"a bitmap counts only for the disks it is about", "resync.go",
		"case rec.Base != nil && rec.Base.Peer == peer && reply.SyncedAt != 0 && reply.SyncedAt == rec.Base.Generation:",
		"case OFF && covered, rec.Base != nil && rec.Base.Peer == peer && reply.SyncedAt != 0 && reply.SyncedAt == rec.Base.Generation:",
		[]Kind{Protect, Unprotect, KillQEMU, PowerOff, CutLink, KillDaemon}, true,
	},
	{
		"a resync goes on only where nothing else has written", "resync.go",
		"reply.Resync == r.ID && r.Mode == string(blockrepl.Checksum) && len(r.Compared) > 0:",
		"(OFF || reply.Resync == r.ID && r.Mode == string(blockrepl.Checksum)) && len(r.Compared) > 0:",
		nil, true,
	},
	{
		"a bitmap resync is on record before it sends anything", "resync.go",
		"		v.Base = nil\n", "		if !OFF {\n\t\t\tv.Base = nil\n\t\t}\n",
		nil, true,
	},
	{
		"only a peer that is a secondary ends an arbitration", "plan_survive.go",
		"return err == nil && there.State == Secondary", "return OFF || err == nil && there.State == Secondary",
		[]Kind{CutAll, CutArbiter, MuteArbiter, StopDaemon, CutOneWay}, true,
	},
	{
		"a link dead in one direction counts as lost", "watch_peer.go",
		"case ev.Kind == heartbeat.PathDown &&", "case !OFF && ev.Kind == heartbeat.PathDown &&",
		[]Kind{CutOneWay}, true,
	},
	{
		"what a plan is told is remembered", "machine.go",
		"m.missed = append(m.missed, message{kind: msg.kind, text: msg.text, copy: msg.copy})",
		"if !OFF {\n\t\t\t\tm.missed = append(m.missed, message{kind: msg.kind, text: msg.text, copy: msg.copy})\n\t\t\t}",
		[]Kind{KillQEMU, Unprotect, Switchover, CutArbiter, MuteArbiter}, false,
	},
	{
		"a fenced copy is killed", "plans.go",
		"if err := c.Kill(ctx); err != nil {", "if OFF {\n\t\t} else if err := c.Kill(ctx); err != nil {",
		nil, false,
	},
	{
		"the peer is told of a death after it", "plans.go",
		"	steps := []Step{{Name: \"end this copy\", Do: m.discard},",
		"	early := func(ctx context.Context) error {\n\t\tif OFF {\n\t\t\treturn m.yield(ctx)\n\t\t}\n\t\treturn nil\n\t}\n" +
			"	steps := []Step{{Name: \"too early\", Do: early}, {Name: \"end this copy\", Do: m.discard},",
		nil, false,
	},
	{
		"an arbitration goes on after a restart", "resume.go",
		"	case phase == Arbitrating, phase == Detaching,", "	case OFF && phase == Arbitrating:\n\t\tgoOn(map[bool]State{true: Secondary, false: Protected}" +
			"[rec.Role == state.RoleSecondary], \"\", \"\")\n\tcase phase == Arbitrating, phase == Detaching,",
		nil, false,
	},
	{
		"a loser never goes on", "plan_survive.go",
		"	case arbiter.Lost:\n", "	case arbiter.Lost:\n\t\tif OFF {\n\t\t\treturn got, nil\n\t\t}\n",
		[]Kind{CutAll, CutLink, StopDaemon}, false,
	},
}

// TestMutants takes the guards off one at a time. A simulator that does not notice would not have found the mistake either.
func TestMutants(t *testing.T) {
	if !*mutants && *one == "" {
		t.Skip("takes a minute or two: -sim.mutants")
	}
	binary := build(t)
	all := time.Now()
	for _, g := range guards {
		if *one == "" && g.rare || !strings.Contains(g.name, *one) {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			begun := time.Now()
			t.Setenv(guardEnv, g.name)
			s := shard{First: 1, N: *reach, For: *within, Only: g.focus}
			f := play(t, binary, s, func(f *found) bool { return len(f.bad) > 0 })
			for seed, v := range f.bad {
				if r := Run(t, generate(seed, g.focus), false); r.Violation != nil {
					t.Errorf("seed %d: the engine as it is breaks a promise: %v", seed, r.Violation)
				}
				t.Logf("after %s: seed %d: %v", time.Since(begun).Round(time.Millisecond), seed, v)
				break
			}
			if len(f.bad) == 0 {
				t.Errorf("not noticed in %d schedules %v", f.played, f.died)
			}
		})
	}
	t.Logf("all in %s", time.Since(all).Round(time.Second))
}

// build makes a simulator in which every guard can be taken off.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	texts := map[string]string{}
	for _, g := range guards {
		file, err := filepath.Abs(filepath.Join("..", filepath.FromSlash(g.file)))
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
		if n := strings.Count(texts[file], g.from); n != 1 {
			t.Fatalf("%s has %d times, not once, what this guard is; it must follow the engine: %s", g.file, n, g.from)
		}
		off := "guardIsOff(" + strconv.Quote(g.name) + ")"
		texts[file] = strings.Replace(texts[file], g.from, strings.ReplaceAll(g.to, "OFF", off), 1)
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
