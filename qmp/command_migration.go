package qmp

import (
	"context"
	"maps"
	"slices"
)

// ColoStatus is the answer to query-colo-status. After COLO_EXIT it keeps the
// old Mode until ColoLostHeartbeat was executed: trust events and own probes.
type ColoStatus struct {
	Mode     string `json:"mode"`      // "primary", "secondary" or "none"
	LastMode string `json:"last-mode"` // before the last exit
	Reason   string `json:"reason"`    // "none", "request", "error", "processing"
}

// QueryColoStatus asks for the COLO mode of this QEMU.
func (c *Client) QueryColoStatus(ctx context.Context) (ColoStatus, error) {
	var s ColoStatus
	err := c.Execute(ctx, "query-colo-status", nil, &s)
	return s, err
}

// ColoLostHeartbeat ends COLO on the copy that goes on: failover. Yank first,
// or a frozen peer hangs QEMU.
func (c *Client) ColoLostHeartbeat(ctx context.Context) error {
	return c.Execute(ctx, "x-colo-lost-heartbeat", nil, nil)
}

// Migration is the answer to query-migrate. Times are in milliseconds, sizes in
// bytes. Status is empty if there was no migration yet.
type Migration struct {
	Status           string         `json:"status"` // "setup", "active", "pre-switchover", "colo", "failed", …
	TotalTime        int64          `json:"total-time"`
	Downtime         int64          `json:"downtime"`
	ExpectedDowntime int64          `json:"expected-downtime"`
	SetupTime        int64          `json:"setup-time"`
	ErrorDesc        string         `json:"error-desc"`
	RAM              MigrationRAM   `json:"ram"`
	BlockedReasons   []string       `json:"blocked-reasons"`
	SocketAddresses  []FlatSockAddr `json:"socket-address"`
}

// MigrationRAM tells how far the copying of memory is.
type MigrationRAM struct {
	Transferred    int64   `json:"transferred"`
	Remaining      int64   `json:"remaining"`
	Total          int64   `json:"total"`
	Duplicate      int64   `json:"duplicate"`
	Normal         int64   `json:"normal"`
	DirtyPagesRate int64   `json:"dirty-pages-rate"`
	DirtySyncCount int64   `json:"dirty-sync-count"`
	Mbps           float64 `json:"mbps"`
	PageSize       int64   `json:"page-size"`
}

// FlatSockAddr is a socket that QEMU listens on.
type FlatSockAddr struct {
	Type string `json:"type"`
	Host string `json:"host"`
	Port string `json:"port"`
	Path string `json:"path"`
}

// QueryMigrate asks how the migration goes.
func (c *Client) QueryMigrate(ctx context.Context) (Migration, error) {
	var m Migration
	err := c.Execute(ctx, "query-migrate", nil, &m)
	return m, err
}

// MigrateSetCapabilities switches capabilities of the migration on and off. Use
// SetColoCapabilities for COLO.
func (c *Client) MigrateSetCapabilities(ctx context.Context, caps map[string]bool) error {
	type state struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	list := make([]state, 0, len(caps))
	for _, name := range slices.Sorted(maps.Keys(caps)) {
		list = append(list, state{name, caps[name]})
	}
	return c.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": list}, nil)
}

// QueryMigrateCapabilities tells which capabilities of the migration are on.
func (c *Client) QueryMigrateCapabilities(ctx context.Context) (map[string]bool, error) {
	var list []struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	if err := c.Execute(ctx, "query-migrate-capabilities", nil, &list); err != nil {
		return nil, err
	}
	caps := make(map[string]bool, len(list))
	for _, e := range list {
		caps[e.Capability] = e.State
	}
	return caps, nil
}

// MigrateSetParameters sets parameters of the migration, such as
// "x-checkpoint-delay" (milliseconds), by QEMU's names.
func (c *Client) MigrateSetParameters(ctx context.Context, params any) error {
	return c.Execute(ctx, "migrate-set-parameters", params, nil)
}

// QueryMigrateParameters decodes the parameters of the migration into out, by QEMU's names.
func (c *Client) QueryMigrateParameters(ctx context.Context, out any) error {
	return c.Execute(ctx, "query-migrate-parameters", nil, out)
}

// Migrate starts a migration. QEMU tells its course by MIGRATION events if the
// capability "events" is on.
func (c *Client) Migrate(ctx context.Context, to Channel) error {
	return c.migrate(ctx, "migrate", to)
}

// MigrateIncoming makes a QEMU that was started with -incoming defer listen.
func (c *Client) MigrateIncoming(ctx context.Context, at Channel) error {
	return c.migrate(ctx, "migrate-incoming", at)
}

// migrate gives the address as a channel, or as a URI to a QEMU before 8.2.
func (c *Client) migrate(ctx context.Context, command string, ch Channel) error {
	err := c.Execute(ctx, command, map[string]any{"channels": []any{ch.wire()}}, nil)
	if names(err, "Parameter 'uri' is missing") {
		err = c.Execute(ctx, command, map[string]any{"uri": ch.uri()}, nil)
	}
	return err
}

// MigrateContinue goes on from a state in which QEMU waits, such as
// "pre-switchover".
func (c *Client) MigrateContinue(ctx context.Context, state string) error {
	return c.Execute(ctx, "migrate-continue", map[string]string{"state": state}, nil)
}

// MigrateCancel stops a migration. It is no error if there is none.
func (c *Client) MigrateCancel(ctx context.Context) error {
	return c.Execute(ctx, "migrate_cancel", nil, nil)
}
