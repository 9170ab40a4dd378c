package colo

import (
	"time"

	"github.com/coloctl/coloctl/colo/heartbeat"
)

// watchPeer runs the heartbeats to the peer and tells every machine what they say.
func (n *Node) watchPeer(mon *heartbeat.Monitor) {
	sub := mon.Subscribe(64)
	n.wg.Go(func() {
		for ev := range sub.C() {
			n.cfg.Log.Info("heartbeat", "node", n.cfg.Name, "event", ev.String())
			n.events.send(Event{Time: time.Now(), Node: n.cfg.Name, Kind: "peer", Text: ev.String(), Fields: map[string]any{"event": ev.Kind, "path": ev.Path}})
			if ev.Kind != heartbeat.PeerLost {
				continue
			}
			n.mu.Lock()
			for _, m := range n.machines {
				go m.post(message{kind: PeerLost, text: "no heartbeat on any link"})
			}
			n.mu.Unlock()
		}
	})
	if err := mon.Run(n.ctx); err != nil {
		n.cfg.Log.Error("heartbeat", "node", n.cfg.Name, "err", err)
	}
}
