// Package witness is the small third voter: a server that keeps the arbiter's records in a file of its own, and the client with which a node
// asks it. A second witness can stand in for the first ([Pair]).
//
// # What a witness promises
//
//   - [arbiter.Decide] runs inside the file's transaction, and what it stored is synced before it is answered. So is everything that an
//     answer is based on.
//   - The caller is who its certificate says. A node can claim for itself only.
//   - A node on the same host is refused ([ErrSameHost]): a witness that dies with a node is none. Same host means same running kernel, by
//     its boot id; a witness in a virtual machine on the node's host isn't noticed.
//   - A file that can't be read whole is refused at the start, one that can't be synced ends all answers until the restart. A witness that lost its
//     file starts empty, with another instance id; it answers [arbiter.ErrNoRecord] to whoever knows a generation, and never lets it go on.
//   - A request that was given up by its caller and repeated isn't carried out late, after the answer to its repetition.
//
// # Errors
//
// The client turns everything that isn't a well-formed answer of a witness into [arbiter.ErrUnreachable]: refused connections,
// timeouts, wrong certificates, proxies' pages, and a witness that couldn't write. Only the errors below and those of package arbiter are
// facts.
//
// # Concurrency
//
// All methods of [Store], [Client] and [Pair] may be called concurrently.
package witness
