// Command protect-failover shows the library at work: two nodes in one program run a VM, protect it, lose the host that runs it, and go on
// with the other one.
//
// It imports the public packages only. What a real installation has on two machines is given by flags: each node needs a network namespace of
// its own with the bridge of the VM's NICs and a replication link to the other. Two namespaces by hand, as root:
//
//	ip netns add n1; ip netns add n2
//	ip link add link0 netns n1 type veth peer link0 netns n2
//	for i in 1 2; do
//	    ip -n n$i addr add 10.90.0.$i/24 dev link0; ip -n n$i link set link0 up
//	    ip -n n$i link add br0 type bridge; ip -n n$i link set br0 up
//	done
//	protect-failover -dir /tmp/pf -spec web.yaml -n1 /run/netns/n1 -n2 /run/netns/n2 -link1 10.90.0.1 -link2 10.90.0.2
//
// The disk images named in the spec lie in DIR/n1; those that are missing are created, empty. The program goes on at each line that it reads
// from its standard input, so that a person can look at the VM meanwhile. Its test runs it with a guest in networks that it makes itself.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/netcompare/comparer"
	"github.com/coloctl/coloctl/state"
)

func main() {
	comparer.Main() // the node starts this program again, for each VM, to compare what its two copies say
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "protect-failover:", err)
		os.Exit(1)
	}
}

// options are what the flags say.
type options struct {
	spec, dir           string
	qemu, qemuImg       string
	accel               string
	netns, links, names [2]string
}

func parse(args []string) (*options, error) {
	o := &options{names: [2]string{"n1", "n2"}}
	f := flag.NewFlagSet("protect-failover", flag.ContinueOnError)
	f.StringVar(&o.spec, "spec", "", "`file` of the VM's spec")
	f.StringVar(&o.dir, "dir", "", "`folder` for disks, state and sockets; a short path")
	f.StringVar(&o.qemu, "qemu", "qemu-system-x86_64", "`program`")
	f.StringVar(&o.qemuImg, "qemu-img", "qemu-img", "`program`")
	f.StringVar(&o.accel, "accel", "kvm", "kvm, or tcg with QEMU 11 or newer")
	for i, n := range o.names {
		f.StringVar(&o.netns[i], n, "", "network namespace of "+n+", a `path`")
		f.StringVar(&o.links[i], fmt.Sprintf("link%d", i+1), "", "`address` of "+n+" on the replication link")
	}
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if o.spec == "" || o.dir == "" || f.NArg() > 0 {
		return nil, errors.New("expected the flags -spec and -dir, and no operands; see -help")
	}
	return o, nil
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(o.spec)
	if err != nil {
		return err
	}
	spec, err := colo.ParseSpec(text, o.spec)
	if err != nil {
		return err
	}

	// The arbiter decides which copy may go on when the nodes have lost each other. This one lives and dies with the program; a real one
	// is a third machine.
	votes := arbiter.NewMemory()
	key := make([]byte, 32) // of the heartbeats
	if _, err := rand.Read(key); err != nil {
		return err
	}
	var nodes [2]*colo.Node
	for i := range nodes {
		n, closeNode, err := open(ctx, o, i, votes, key)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closeNode()) }()
		nodes[i] = n
	}
	// Nodes of one program talk by direct calls. Between two machines a Peer of another kind takes the place of this wire.
	if _, err := colo.NewWire(nodes[0], nodes[1]); err != nil {
		return err
	}
	tell := newTeller(out)
	var wg sync.WaitGroup
	watch, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	for _, n := range nodes {
		events := n.Watch(watch)
		wg.Go(func() { tell.follow(events) })
	}
	defer wg.Wait()
	defer stopWatching()
	defer func() { // the end, however it comes: no QEMU is left
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, clean(last, nodes, spec.Name))
	}()
	return story(ctx, &person{lines(in), tell}, nodes, spec)
}

// open makes a node: its state file, its folders, and what it shares with the other one.
func open(ctx context.Context, o *options, i int, votes *arbiter.Memory, key []byte) (*colo.Node, func() error, error) {
	name := o.names[i]
	addr, err := netip.ParseAddr(o.links[i])
	if err != nil {
		return nil, nil, fmt.Errorf("-link%d: %w", i+1, err)
	}
	dir := filepath.Join(o.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	store, err := state.Open(filepath.Join(dir, "state.db"), &state.Options{Node: name})
	if err != nil {
		return nil, nil, err
	}
	compare, err := comparer.Self()
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	n, err := colo.NewNode(ctx, colo.NodeConfig{
		Name: name, RunDir: filepath.Join(dir, "run"), StorageDir: dir, Store: store,
		QEMU: []string{o.qemu}, QEMUImg: []string{o.qemuImg}, Accel: o.accel, Comparer: compare,
		Netns: o.netns[i], Links: []colo.Link{{Name: "link0", Address: addr}}, Ports: colo.PortRange{First: 9000, Last: 9099},
		Arbiter: votes.View(name), HeartbeatKey: key,
		Log: slog.New(slog.DiscardHandler), // the events that are printed say the same
	})
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	return n, func() error { return errors.Join(n.Close(), store.Close()) }, nil
}

// story is what this program is for.
func story(ctx context.Context, p *person, nodes [2]*colo.Node, spec *colo.Spec) error {
	n1, n2, vm := nodes[0], nodes[1], spec.Name
	if err := n1.Create(ctx, spec); err != nil {
		return err
	}
	if err := n1.Start(ctx, vm); err != nil {
		return err
	}
	if err := p.ask(ctx, "n1 runs %s, alone; Enter protects it", vm); err != nil {
		return err
	}

	begun := time.Now()
	if err := n1.Protect(ctx, vm, colo.ProtectOptions{}); err != nil {
		return err
	}
	took := time.Since(begun)
	s, err := n1.Status(ctx, vm)
	if err != nil {
		return err
	}
	if !s.Verdict.Protected {
		return fmt.Errorf("not protected: %s", s.Verdict.Reason)
	}
	if err := p.ask(ctx, "protected after %v, %d bytes of disk sent; Enter kills the QEMU of n1", took.Round(time.Millisecond), s.Resync.Copied); err != nil {
		return err
	}

	// A crash of the host, as far as one machine can have it: QEMU gets no chance to say anything.
	begun = time.Now()
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		return err
	}
	if _, err := n2.Wait(ctx, vm, func(s colo.Status) bool { return s.State == colo.Solo }); err != nil {
		return err
	}
	return p.ask(ctx, "n2 runs %s, alone, %v after the loss; Enter ends it", vm, time.Since(begun).Round(time.Millisecond))
}

// clean ends the VM wherever it still runs. The nodes themselves would leave it running when they are closed.
func clean(ctx context.Context, nodes [2]*colo.Node, vm string) error {
	var errs []error
	for _, n := range nodes {
		s, err := n.Status(ctx, vm)
		if errors.Is(err, colo.ErrNoVM) {
			continue
		}
		if err == nil && s.PID != 0 {
			err = n.Stop(ctx, vm, colo.StopOptions{Force: true})
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// person is who watches and says when to go on.
type person struct {
	lines <-chan string
	tell  *teller
}

// ask says something and waits for a line. The end of the input is a yes to everything.
func (p *person) ask(ctx context.Context, format string, args ...any) error {
	p.tell.say(format, args...)
	select {
	case <-p.lines:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lines reads in until its end. Nobody can wait for that: a read from a terminal can't be interrupted.
func lines(in io.Reader) <-chan string {
	c := make(chan string)
	go func() {
		defer close(c)
		for s := bufio.NewScanner(in); s.Scan(); {
			c <- s.Text()
		}
	}()
	return c
}

// teller prints a line for everything that happens, with the time since it was made.
type teller struct {
	mu    sync.Mutex
	out   io.Writer
	begun time.Time
}

func newTeller(out io.Writer) *teller { return &teller{out: out, begun: time.Now()} }

func (t *teller) say(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, "%7.3f  %s\n", time.Since(t.begun).Seconds(), fmt.Sprintf(format, args...))
}

// follow prints a node's changes of state until it is closed.
func (t *teller) follow(events <-chan colo.Event) {
	for e := range events {
		if e.Kind == "state" {
			t.say("  %s: %s: %s", e.Node, e.State, e.Text)
		}
	}
}
