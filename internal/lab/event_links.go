package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/heartbeat"
)

// linkLostFor is how long a link of several is away: longer than a checkpoint may take, so that one that waited for it would be noticed.
const linkLostFor = 5 * time.Second

// loseOneLink: nobody changes a role, both nodes say which link is lost, tell of it in an event, and use it again when it is back.
var loseOneLink = undisturbed("one of the links is lost", func(ctx context.Context, r *Run) error {
	return r.withoutLink(ctx, r.Rand.IntN(len(r.Lab.Topology.Links)))
})

// alternateLinks loses one link after the other for a while, with and without its carrier.
func alternateLinks(d time.Duration) Step {
	s := undisturbed(fmt.Sprintf("the links are lost in turn, for %v", d), func(ctx context.Context, r *Run) error {
		links := len(r.Lab.Topology.Links)
		for begun, i := time.Now(), 0; time.Since(begun) < d || i < links; i++ {
			if err := r.withoutLink(ctx, i%links); err != nil {
				return err
			}
		}
		return nil
	})
	s.Limit += d
	return s
}

// degradeLink makes one of the links slow and lossy for a while.
func degradeLink(d time.Duration) Step {
	s := undisturbed(fmt.Sprintf("one of the links takes %v there and back and loses 5 %%, for %v", 2*slowDelay, d), func(ctx context.Context, r *Run) (err error) {
		if err := r.carriedBy(ctx, r.linkNames()...); err != nil {
			return err
		}
		link := r.Lab.Topology.Links[r.Rand.IntN(len(r.Lab.Topology.Links))]
		slow, err := link.Slow(slowDelay, slowLoss, r.Rand.Uint64())
		if err != nil {
			return err
		}
		err = pause(ctx, d)
		if err = errors.Join(err, slow.Close(), link.Restore()); err != nil {
			return err
		}
		r.Tell.Say("%s is quick again; it has carried %d frames and lost %d", link.Name, slow.Passed.Load(), slow.Lost.Load())
		return r.carriedBy(ctx, r.linkNames()...)
	})
	s.Limit += d
	return s
}

func (r *Run) linkNames() (names []string) {
	for _, l := range r.Lab.Topology.Links {
		names = append(names, l.Name)
	}
	return names
}

// withoutLink loses one link for a while.
func (r *Run) withoutLink(ctx context.Context, i int) error {
	all := r.linkNames()
	if err := r.carriedBy(ctx, all...); err != nil {
		return err
	}
	link := r.Lab.Topology.Links[i]
	how := []Cut{CutSilent, CutCarrier}[r.Rand.IntN(2)]
	r.Tell.Say("%s is lost (%s)", link.Name, how)
	r.mark(true, "%s is lost", link.Name)
	at := time.Now()
	if err := link.Cut(how); err != nil {
		return err
	}
	for _, name := range NodeNames {
		if err := r.alert(ctx, name, link.Name, at, heartbeat.PathDown); err != nil {
			return err
		}
	}
	if err := r.carriedBy(ctx, slices.DeleteFunc(slices.Clone(all), func(l string) bool { return l == link.Name })...); err != nil {
		return err
	}
	if err := pause(ctx, time.Until(at.Add(linkLostFor))); err != nil {
		return err
	}
	if err := r.protectedStill(ctx); err != nil {
		return err
	}
	at = time.Now()
	if err := link.Restore(); err != nil {
		return err
	}
	r.mark(false, "%s is back", link.Name)
	for _, name := range NodeNames {
		if err := r.alert(ctx, name, link.Name, at, heartbeat.PathUp); err != nil {
			return err
		}
	}
	return r.carriedBy(ctx, all...)
}

// alert waits until a node has told of a link in an event, and says the same in its status.
func (r *Run) alert(ctx context.Context, node, link string, since time.Time, kind heartbeat.Kind) error {
	_, err := r.Lab.Journal.Await(ctx, since, func(e colo.Event) bool {
		return e.Node == node && e.Kind == "peer" && e.Fields["event"] == string(kind) && e.Fields["path"] == link
	})
	if err != nil {
		return fmt.Errorf("%s does not tell of %s: %s: %w", node, link, kind, err)
	}
	return poll(ctx, func() (bool, error) {
		s, err := r.Lab.Node(node).Client.Node(ctx)
		if err != nil || s.Peer == nil {
			return false, err
		}
		i := slices.IndexFunc(s.Peer.Links, func(l colo.LinkStatus) bool { return l.Name == link })
		if i < 0 || s.Peer.Links[i].Up != (kind == heartbeat.PathUp) {
			return false, fmt.Errorf("%s says of %s: %+v", node, link, s.Peer.Links)
		}
		return true, nil
	})
}

// carriedBy waits until the VM is protected and replicated over exactly these links, encrypted, as both nodes say.
func (r *Run) carriedBy(ctx context.Context, links ...string) error {
	for _, name := range NodeNames {
		err := poll(ctx, func() (bool, error) {
			s, err := r.Lab.Node(name).Status(ctx)
			if err != nil {
				return false, err
			}
			if !s.Verdict.Protected {
				return false, fmt.Errorf("%s says that it is not protected: %s", name, s.Verdict.Reason)
			}
			if p := s.Replication; p == nil || !p.Encrypted || !p.MPTCP || !slices.Equal(p.Links, links) {
				return false, fmt.Errorf("%s is replicated by %+v, not by %v", name, p, links)
			}
			return true, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
