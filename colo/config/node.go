package config

import (
	"net/netip"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/libvirt"
)

// NodeConfig is what the engine needs of the configuration. The rest (store, arbiter, key, log) its caller opens.
func (c *Config) NodeConfig() colo.NodeConfig {
	out := colo.NodeConfig{
		Name: c.Node, RunDir: c.RunDir, StorageDir: c.StorageDir, Links: links(c.Links), Ports: colo.PortRange(c.Ports), Netns: c.Netns,
		QEMU: c.QEMU.Command, QEMUImg: c.QEMU.Img, Accel: c.QEMU.Accel,
		HeartbeatPort: c.Heartbeat.Port, HeartbeatInterval: time.Duration(c.Heartbeat.Interval), HeartbeatTimeout: time.Duration(c.Heartbeat.Timeout),
		HangTimeout: time.Duration(c.HangTimeout), VerifyEvery: time.Duration(c.Verify.Every), VerifySpeed: int64(c.Verify.Limit), OverlayDir: c.OverlayDir, Plain: c.Replication.Encryption == "off",
		MaxLinkRTT: time.Duration(c.Replication.MaxLinkRTT),
	}
	// Nodes whose clocks agree hear each other when they wake anyway.
	now := time.Now()
	out.Beat = now.Add(-time.Duration(now.UnixNano()) % time.Duration(c.Heartbeat.Interval))
	out.Resync = colo.ResyncLimits{Parallel: c.Resync.Parallel, Rate: c.Resync.Rate}
	if c.Verify.Off {
		out.VerifyEvery = 0
	}
	out.User, _ = c.QEMU.user() // validated
	if s, ok := c.libvirt(); ok {
		out.Starter = s
	}
	if r := c.Recovery; !r.Off {
		out.Recovery = &colo.Recovery{
			HoldDown: time.Duration(r.HoldDown), PrimaryFirst: time.Duration(r.PrimaryFirst), Attempts: r.Attempts, Window: time.Duration(r.Window),
		}
	}
	return out
}

// LimitsOf are the node's limits on a machine with so much memory and so many CPUs.
func (c *Config) LimitsOf(memory int64, cpus int) colo.Limits {
	if c.Limits.Off {
		return colo.Limits{}
	}
	out := colo.Limits{Memory: c.Limits.Memory, VCPUs: c.Limits.VCPUs}
	setDefault(&out.Memory, colo.Size(memory-min(memory/4, 1<<30)))
	setDefault(&out.VCPUs, 4*cpus)
	return out
}

// libvirt is what starts QEMU instead of the daemon, if the configuration says so.
func (c *Config) libvirt() (libvirt.Starter, bool) {
	s := libvirt.Starter{Netns: c.Netns}
	if l := c.Libvirt; l != nil {
		s.Address, s.LogDir = libvirt.Address{Socket: l.Socket, URI: l.URI}, l.LogDir
	}
	return s, c.Launcher == LauncherLibvirt
}

// Info is the peer as it is configured; what it runs is known when it has been asked.
func (p *Peer) Info() colo.NodeInfo {
	return colo.NodeInfo{Name: p.Name, Links: links(p.Links), Port: p.HeartbeatPort}
}

func links(in []Link) []colo.Link {
	var out []colo.Link
	for _, l := range in {
		a, _ := netip.ParseAddr(l.Address) // Validate has seen it
		out = append(out, colo.Link{Name: l.Name, Address: a})
	}
	return out
}
