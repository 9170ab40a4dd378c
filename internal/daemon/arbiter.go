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

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/witness"
	"github.com/coloctl/coloctl/colo/config"
)

// Arbiter is one in use. Run and Close may be nil.
type Arbiter struct {
	arbiter.Arbiter
	Name  string                          // for people
	Run   func(ctx context.Context) error // ends with ctx
	Close func() error                    // after Run
}

// ArbiterFunc opens an arbiter. It must not need it to answer.
type ArbiterFunc func(ctx context.Context, c *config.Config, creds *pki.Credentials, log *slog.Logger) (Arbiter, error)

// arbiters are the built-in ones.
var arbiters = map[string]ArbiterFunc{
	config.ArbiterNone: func(context.Context, *config.Config, *pki.Credentials, *slog.Logger) (Arbiter, error) {
		return Arbiter{}, nil
	},
	config.ArbiterWitness: openWitness,
}

func (p Program) openArbiter(ctx context.Context, c *config.Config, creds *pki.Credentials, log *slog.Logger) (Arbiter, error) {
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
	return open(ctx, c, creds, log)
}

// openWitness joins one witness or a pair.
func openWitness(_ context.Context, c *config.Config, creds *pki.Credentials, log *slog.Logger) (Arbiter, error) {
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
		cl, err := witness.NewClient(witness.ClientOptions{Name: w.Name, Address: w.Address, Credentials: creds, Host: c.HostID})
		if err != nil {
			return Arbiter{}, errors.Join(err, closeAll())
		}
		clients, names = append(clients, cl), append(names, w.Name)
	}
	if len(clients) == 1 {
		return Arbiter{Arbiter: clients[0], Name: "witness " + names[0], Close: closeAll}, nil
	}
	pair, err := witness.NewPair(clients[0], clients[1], c.LedgerFile(), witness.PairOptions{HoldDown: time.Duration(c.Arbiter.HoldDown), Log: log})
	if err != nil {
		return Arbiter{}, errors.Join(err, closeAll())
	}
	return Arbiter{
		Arbiter: pair, Name: "witnesses " + strings.Join(names, " and "), Run: pair.Run,
		Close: func() error { return errors.Join(pair.Close(), closeAll()) },
	}, nil
}
