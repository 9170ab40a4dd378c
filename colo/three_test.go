package colo_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/heartbeat"
	"github.com/coloctl/coloctl/internal/colotest"
)

// three is n1, n2 and n3 without QEMU, each a peer of both others.
type three struct {
	*bare
	wires map[string]*colo.Wire
}

var triples = [][2]string{{"n1", "n2"}, {"n1", "n3"}, {"n2", "n3"}}

func newThree(t *testing.T) *three {
	p := newBare(t)
	p.powerOff()
	p.recovery = &colo.Recovery{HoldDown: 100 * time.Millisecond, PrimaryFirst: 500 * time.Millisecond}
	p.listen = func() func(context.Context, netip.AddrPort) (net.PacketConn, error) {
		return heartbeat.Share(func(ctx context.Context, local netip.AddrPort) (net.PacketConn, error) {
			return new(net.ListenConfig).ListenPacket(ctx, "udp", local.String())
		})
	}
	p.launchers["n3"] = colotest.NewLauncher(p.launchers["n1"].World)
	f := &three{p, map[string]*colo.Wire{}}
	for _, name := range []string{"n1", "n2", "n3"} {
		p.open(name)
	}
	for _, pair := range triples {
		w, err := colo.NewWire(p.nodes[pair[0]], p.nodes[pair[1]])
		must(t, err)
		f.wires[pair[0]+pair[1]] = w
	}
	return f
}

// lose is the loss of a host: nobody hears of it any more.
func (f *three) lose(name string) {
	f.t.Helper()
	must(f.t, f.nodes[name].Close())
	must(f.t, f.stores[name].Close())
	for _, vm := range []string{"web", "pair"} {
		if c := f.launchers[name].Copy(vm); c != nil {
			c.Crash()
		}
	}
}

// back is its return.
func (f *three) back(name string) {
	f.t.Helper()
	f.open(name)
	for _, pair := range triples {
		if slices.Contains(pair[:], name) {
			must(f.t, f.wires[pair[0]+pair[1]].Replace(f.nodes[name]))
		}
	}
}

// in waits until a VM is protected by two given nodes.
func (f *three) in(primary, secondary string) {
	f.t.Helper()
	f.await(primary, "being the primary with "+secondary, func(s colo.Status) bool {
		return s.State == colo.Protected && s.Peer == secondary && slices.Contains(s.Members, secondary)
	})
	f.await(secondary, "being the secondary of "+primary, func(s colo.Status) bool { return s.State == colo.Secondary && slices.Contains(s.Members, primary) })
}

// TestThreeNodes: a VM whose other node is lost for good is protected by the third candidate, goes on there when the first is lost as well, and takes a returned one back as its standby.
// One that was replaced doesn't start what it has.
func TestThreeNodes(t *testing.T) {
	t.Parallel()
	f := newThree(t)
	ctx := t.Context()
	spec := ranked("web", 0, "")
	spec.Nodes, spec.Protection.ReplaceAfter = []string{"n1", "n2", "n3"}, colo.Duration(time.Second)
	must(t, f.nodes["n1"].Create(ctx, spec))
	must(t, f.nodes["n1"].Start(ctx, "web"))
	f.in("n1", "n2")

	f.lose("n2")
	f.in("n1", "n3")
	if c := f.nodes["n3"].Capacity(); len(c.VMs) != 1 {
		t.Errorf("n3 keeps room for %+v", c.VMs)
	}

	f.back("n2") // what it has was replaced
	f.await("n2", "being left out", func(s colo.Status) bool {
		return (s.State == colo.Stopped || s.State == colo.Outdated) && s.Outlook != ""
	})
	if err := f.nodes["n2"].Start(ctx, "web"); !errors.Is(err, colo.ErrNotCurrent) {
		t.Errorf("n2 starts a copy that was replaced: %v", err)
	}
	f.in("n1", "n3")

	f.lose("n1")
	f.in("n3", "n2")
	f.back("n1")
	f.await("n1", "being left out", func(s colo.Status) bool {
		return (s.State == colo.Stopped || s.State == colo.Outdated) && s.Outlook != ""
	})
	f.in("n3", "n2")
	for _, name := range []string{"n1"} {
		if f.launchers[name].Copy("web") != nil {
			t.Errorf("a copy runs on %s", name)
		}
	}
}

// TestThreeNodesWait: the lost node is given its time to come back; a VM that names two nodes stays with them; a person may choose.
func TestThreeNodesWait(t *testing.T) {
	t.Parallel()
	f := newThree(t)
	ctx := t.Context()
	spec := ranked("web", 0, "")
	spec.Nodes = []string{"n1", "n2", "n3"}
	must(t, f.nodes["n1"].Create(ctx, spec))
	must(t, f.nodes["n1"].Start(ctx, "web"))
	f.in("n1", "n2")
	pair := ranked("pair", 0, "")
	pair.Nodes = []string{"n1", "n2"}
	must(t, f.nodes["n1"].Create(ctx, pair))
	if err := f.nodes["n3"].Create(ctx, pair); !errors.Is(err, colo.ErrNotCandidate) {
		t.Errorf("made on n3: %v", err)
	}
	must(t, f.nodes["n1"].Start(ctx, "pair"))
	_, err := f.nodes["n1"].Wait(ctx, "pair", func(s colo.Status) bool { return s.State == colo.Protected })
	must(t, err)
	f.lose("n2")
	f.await("n1", "waiting for n2", func(s colo.Status) bool { return s.State == colo.Solo && s.Outlook != "" })
	f.back("n2")
	f.in("n1", "n2") // in less than the five minutes

	must(t, f.nodes["n1"].Unprotect(ctx, "web"))
	must(t, f.nodes["n1"].Protect(ctx, "web", colo.ProtectOptions{Node: "n3"}))
	f.in("n1", "n3")
	must(t, f.nodes["n1"].Unprotect(ctx, "pair"))
	if err := f.nodes["n1"].Protect(ctx, "pair", colo.ProtectOptions{Node: "n3"}); !errors.Is(err, colo.ErrNotCandidate) {
		t.Errorf("protected by a node that its spec does not name: %v", err)
	}
}
