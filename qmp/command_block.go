package qmp

import "context"

// BlockNode is an element of query-named-block-nodes.
type BlockNode struct {
	NodeName     string        `json:"node-name"`
	Driver       string        `json:"drv"`
	File         string        `json:"file"`
	ReadOnly     bool          `json:"ro"`
	Image        BlockImage    `json:"image"`
	DirtyBitmaps []DirtyBitmap `json:"dirty-bitmaps"`
	// Children is empty on a QEMU that doesn't tell them.
	Children []BlockChild `json:"children"`
}

// BlockImage is what is known of a node's image. Sizes are in bytes.
type BlockImage struct {
	Filename    string `json:"filename"`
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual-size"`
	ActualSize  int64  `json:"actual-size"`
	ClusterSize int64  `json:"cluster-size"`
}

// BlockChild is an edge of QEMU's block graph.
type BlockChild struct {
	Child    string `json:"child"` // its name at the parent, such as "children.1"
	NodeName string `json:"node-name"`
}

// DirtyBitmap tells what was written since it was made or cleared.
type DirtyBitmap struct {
	Name         string `json:"name"`
	Count        int64  `json:"count"`       // dirty bytes
	Granularity  int64  `json:"granularity"` // bytes a bit
	Recording    bool   `json:"recording"`
	Busy         bool   `json:"busy"`
	Persistent   bool   `json:"persistent"`
	Inconsistent bool   `json:"inconsistent"`
}

// QueryNamedBlockNodes lists all nodes, without their backing chains' images.
func (c *Client) QueryNamedBlockNodes(ctx context.Context) ([]BlockNode, error) {
	var l []BlockNode
	err := c.Execute(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &l)
	return l, err
}

// BlockdevAdd makes a node from QEMU's BlockdevOptions.
func (c *Client) BlockdevAdd(ctx context.Context, options any) error {
	return c.Execute(ctx, "blockdev-add", options, nil)
}

// BlockdevDel deletes a node that nothing uses. For a dead NBD client it can
// wait for ever unless the connection was yanked.
func (c *Client) BlockdevDel(ctx context.Context, node string) error {
	return c.Execute(ctx, "blockdev-del", map[string]string{"node-name": node}, nil)
}

// BlockdevChange adds a child to a quorum (child empty) or removes one (node
// empty): x-blockdev-change.
func (c *Client) BlockdevChange(ctx context.Context, parent, child, node string) error {
	return c.Execute(ctx, "x-blockdev-change", struct {
		Parent string `json:"parent"`
		Child  string `json:"child,omitempty"`
		Node   string `json:"node,omitempty"`
	}{parent, child, node}, nil)
}

// BlockDirtyBitmapAdd starts to record what is written to a node.
type BlockDirtyBitmapAdd struct {
	Node        string `json:"node"`
	Name        string `json:"name"`
	Granularity int64  `json:"granularity,omitempty"` // bytes; QEMU's choice if 0
	Persistent  bool   `json:"persistent,omitempty"`
	Disabled    bool   `json:"disabled,omitempty"`
}

// BlockDirtyBitmapAdd makes a bitmap.
func (c *Client) BlockDirtyBitmapAdd(ctx context.Context, b BlockDirtyBitmapAdd) error {
	return c.Execute(ctx, "block-dirty-bitmap-add", b, nil)
}

// BlockDirtyBitmapRemove deletes a bitmap.
func (c *Client) BlockDirtyBitmapRemove(ctx context.Context, node, name string) error {
	return c.Execute(ctx, "block-dirty-bitmap-remove", map[string]string{"node": node, "name": name}, nil)
}

// BlockDirtyBitmapClear forgets what was written. Never use it between two
// passes of a resync.
func (c *Client) BlockDirtyBitmapClear(ctx context.Context, node, name string) error {
	return c.Execute(ctx, "block-dirty-bitmap-clear", map[string]string{"node": node, "name": name}, nil)
}

// NBDServer says where NBD exports are served.
type NBDServer struct {
	Addr           InetAddr
	TLSCreds       string // id of a tls-creds object; no TLS if empty
	TLSAuthz       string
	MaxConnections int // no limit if 0
}

// NBDServerStart starts QEMU's only NBD server. It fails if there is one.
func (c *Client) NBDServerStart(ctx context.Context, s NBDServer) error {
	return c.Execute(ctx, "nbd-server-start", struct {
		Addr           any    `json:"addr"`
		TLSCreds       string `json:"tls-creds,omitempty"`
		TLSAuthz       string `json:"tls-authz,omitempty"`
		MaxConnections int    `json:"max-connections,omitempty"`
	}{s.Addr.Legacy(), s.TLSCreds, s.TLSAuthz, s.MaxConnections}, nil)
}

// NBDServerStop stops the NBD server and drops all its exports and clients.
func (c *Client) NBDServerStop(ctx context.Context) error {
	return c.Execute(ctx, "nbd-server-stop", nil, nil)
}

// BlockExport makes a node available to others.
type BlockExport struct {
	Type     string `json:"type"` // "nbd"
	ID       string `json:"id"`
	NodeName string `json:"node-name"`
	Name     string `json:"name,omitempty"` // what NBD clients ask for; the node's name if empty
	Writable bool   `json:"writable,omitempty"`
}

// BlockExportAdd makes an export.
func (c *Client) BlockExportAdd(ctx context.Context, e BlockExport) error {
	return c.Execute(ctx, "block-export-add", e, nil)
}

// BlockExportDel removes an export. Mode is "safe" (refuse while a client is
// connected; QEMU's default, also if empty) or "hard" (drop the clients). The
// export is gone at the event BLOCK_EXPORT_DELETED, not yet at the reply.
func (c *Client) BlockExportDel(ctx context.Context, id, mode string) error {
	return c.Execute(ctx, "block-export-del", struct {
		ID   string `json:"id"`
		Mode string `json:"mode,omitempty"`
	}{id, mode}, nil)
}

// BlockExportInfo is an element of query-block-exports.
type BlockExportInfo struct {
	ID           string `json:"id"`
	Type         string `json:"type"`
	NodeName     string `json:"node-name"`
	ShuttingDown bool   `json:"shutting-down"`
}

// QueryBlockExports lists the exports.
func (c *Client) QueryBlockExports(ctx context.Context) ([]BlockExportInfo, error) {
	var l []BlockExportInfo
	err := c.Execute(ctx, "query-block-exports", nil, &l)
	return l, err
}
