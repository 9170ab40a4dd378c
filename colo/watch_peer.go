package colo

import (
	"net/netip"
	"slices"
	"time"

	"github.com/coloctl/coloctl/colo/heartbeat"
)

// linksUp makes connections with MPTCP leave a link that is lost, and come back to it. When no link works all are left as they are.
func (n *Node) linksUp() {
	l, ok := n.launcher.(multipath)
	if !ok || l.Multipath() != nil || len(n.cfg.Links) < 2 {
		return
	}
	n.linking.Lock() // what is told last must be what was seen last
	defer n.linking.Unlock()
	var up []netip.Addr
	peers := n.partnerships()
	for _, link := range n.cfg.Links {
		if slices.ContainsFunc(peers, func(p *partnership) bool { return p.beat.Status().Path(link.Name).Up }) {
			up = append(up, link.Address)
		}
	}
	if len(up) == 0 {
		return
	}
	if err := l.LinksUp(n.ctx, up); err != nil {
		n.cfg.Log.Warn("replication does not use the links that work", "node", n.cfg.Name, "err", err)
	}
}

// watchPeer runs the heartbeats to the peer and tells every machine what they say.
func (n *Node) watchPeer(p *partnership) {
	mon := p.beat
	sub := mon.Subscribe(64)
	paths := make(chan struct{}, 1)
	n.wg.Go(func() { // a kernel that takes its time must not keep the loss of the peer waiting
		for {
			select {
			case <-paths:
				n.linksUp()
			case <-n.ctx.Done():
				return
			}
		}
	})
	n.wg.Go(func() {
		for ev := range sub.C() {
			if ev.Kind == heartbeat.PathBroken {
				n.pathBroken(ev)
				continue
			}
			if ev.Kind == heartbeat.PathUp || ev.Kind == heartbeat.PathDown {
				select { // only the newest counts
				case <-paths:
				default:
				}
				paths <- struct{}{}
			}
			n.cfg.Log.Info("heartbeat", "node", n.cfg.Name, "event", ev.String())
			n.events.send(Event{Time: time.Now(), Node: n.cfg.Name, Kind: "peer", Text: ev.String(), Fields: map[string]any{"event": ev.Kind, "path": ev.Path}})
			var text string
			switch {
			case ev.Kind == heartbeat.Stalled:
				now := time.Now()
				n.woke.Store(&now)
				continue
			case ev.Kind == heartbeat.PeerLost:
				text = "no heartbeat on any link"
			case ev.Kind == heartbeat.PathDown && ev.Status.State == heartbeat.Alive && len(ev.Status.Down()) == len(ev.Status.Paths):
				text = "the peer hears no heartbeat on any link" // and counts this node as lost
			default:
				continue
			}
			for _, m := range n.all() {
				if m.with() == p {
					n.wg.Go(func() { m.post(message{kind: PeerLost, text: text}) })
				}
			}
		}
	})
	if err := mon.Run(n.ctx); err != nil {
		n.cfg.Log.Error("heartbeat", "node", n.cfg.Name, "err", err)
	}
}
