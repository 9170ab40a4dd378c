package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/fence"
	"github.com/coloctl/coloctl/colo/arbiter/witness"
	"github.com/coloctl/coloctl/colo/config"
)

// Arbiter is one in use. All but Arbiter and Name may be missing.
type Arbiter struct {
	arbiter.Arbiter
	Name  string                          // for people
	Run   func(ctx context.Context) error // ends with ctx
	Close func() error                    // after Run
	// Look finds out, every now and then, whether it could decide now.
	Look  func(ctx context.Context) error
	Every time.Duration // between two looks; lookEvery when 0
	// Exchange answers the peer's half.
	Exchange func(ctx context.Context, from string, m fence.Message) (fence.Reply, error)
}

// Env is what an arbiter can be made of.
type Env struct {
	Config      *config.Config
	Credentials *pki.Credentials
	Peer        *api.Peer // nil without a peer
	// Consent says whether this node agrees to a record without its own copy. It may be called only once the daemon serves its peer.
	Consent func(ctx context.Context, next arbiter.Record) error
	Log     *slog.Logger
}

// ArbiterFunc opens an arbiter. It must not need it to answer.
type ArbiterFunc func(ctx context.Context, e Env) (Arbiter, error)

// arbiters are the built-in ones.
var arbiters = map[string]ArbiterFunc{
	config.ArbiterNone:    func(context.Context, Env) (Arbiter, error) { return Arbiter{}, nil },
	config.ArbiterWitness: openWitness,
	config.ArbiterFence:   openFence,
}

func (p Program) openArbiter(ctx context.Context, e Env) (Arbiter, error) {
	c := e.Config
	all := maps.Clone(arbiters)
	maps.Copy(all, p.Arbiters)
	open := all[c.Arbiter.Kind]
	if open == nil {
		hint := ""
		if c.Arbiter.Kind == config.ArbiterEtcd {
			hint = ": use colod-etcd"
		}
		return Arbiter{}, fmt.Errorf("this %s can't use an arbiter of the kind %s%s; it knows %s", p.Name, c.Arbiter.Kind, hint,
			strings.Join(slices.Sorted(maps.Keys(all)), ", "))
	}
	return open(ctx, e)
}

// openWitness joins one witness or a pair.
func openWitness(_ context.Context, e Env) (Arbiter, error) {
	c := e.Config
	var clients []*witness.Client
	var names []string
	closeAll := func() error {
		var errs []error
		for _, cl := range clients {
			errs = append(errs, cl.Close())
		}
		return errors.Join(errs...)
	}
	for _, w := range c.Arbiter.Witnesses {
		cl, err := witness.NewClient(witness.ClientOptions{Name: w.Name, Address: w.Address, Credentials: e.Credentials, Host: c.HostID})
		if err != nil {
			return Arbiter{}, errors.Join(err, closeAll())
		}
		clients, names = append(clients, cl), append(names, w.Name)
	}
	look := func(ctx context.Context) error {
		var errs []error
		for _, cl := range clients {
			_, err := cl.Health(ctx)
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	if len(clients) == 1 {
		return Arbiter{Arbiter: clients[0], Name: "witness " + names[0], Close: closeAll, Look: look}, nil
	}
	pair, err := witness.NewPair(clients[0], clients[1], c.LedgerFile(), witness.PairOptions{HoldDown: time.Duration(c.Arbiter.HoldDown), Log: e.Log})
	if err != nil {
		return Arbiter{}, errors.Join(err, closeAll())
	}
	return Arbiter{
		Arbiter: pair, Name: "witnesses " + strings.Join(names, " and "), Run: pair.Run, Look: look,
		Close: func() error { return errors.Join(pair.Close(), closeAll()) },
	}, nil
}

// openFence makes this node's half of an arbiter whose proof is the peer's power cut.
func openFence(_ context.Context, e Env) (Arbiter, error) {
	c, f := e.Config, e.Config.Arbiter.Fence
	var agents []fence.Agent
	var fencers []fence.Fencer
	var names []string
	for _, d := range f.Devices {
		a := d.FenceAgent()
		agents, fencers, names = append(agents, a), append(fencers, a), append(names, d.Agent)
	}
	a, err := fence.New(fence.Options{
		Node: c.Node, Peer: c.Peers[0].Name, Path: c.FenceFile(), Exchange: e.Peer, Fencers: fencers, Delay: time.Duration(f.Delay),
		FenceTimeout: time.Duration(f.Timeout), Consent: e.Consent, Log: e.Log,
	})
	if err != nil {
		return Arbiter{}, err
	}
	return Arbiter{
		Arbiter: a, Name: "fencing by " + strings.Join(names, ", then "), Run: a.Run, Close: a.Close, Exchange: a.Receive, Every: 5 * time.Minute,
		Look: func(ctx context.Context) error {
			var errs []error
			for _, a := range agents {
				errs = append(errs, a.Ready(ctx))
			}
			return errors.Join(errs...)
		},
	}, nil
}
