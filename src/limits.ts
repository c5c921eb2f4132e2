/**
 * Every bound that keeps a peer, a guest or a defect from taking memory or time without end, each with its reason.
 * What the protocol itself fixes (docs/protocol.md) is marked "protocol": changing it changes what peers accept.
 */

/** Bytes of a hello's JSON body (protocol). 256 set digests take 17 KiB, 256 target names of 128 bytes 34 KiB. */
export const HELLO_BODY_BYTES_MAX = 65536

/** Template sets in a hello (protocol): more would not fit the body together with the rest. */
export const HELLO_SETS_MAX = 256

/** Features in a hello (protocol): there are none yet, and a version seldom brings more than one. */
export const HELLO_FEATURES_MAX = 64

/** Target names in a server's hello (protocol); the list only informs, a server with more names sends the first ones. */
export const HELLO_TARGETS_MAX = 256

/** Characters of a target's name (protocol): a host name and port, or a path of a unix socket, fits. */
export const TARGET_LENGTH_MAX = 128

/** Characters of `agent` and `kind` (protocol): they go to logs only. */
export const LABEL_LENGTH_MAX = 64

/** Bytes of the text in RESET, BYE and a refusal (protocol): one line of a log. */
export const TEXT_BYTES_MAX = 512

/** Pages of the session ring (protocol): 2^22 pages are 16 GiB, more than any proxy host spares. */
export const RING_PAGES_MAX = 2 ** 22

/** Entries of the place table (protocol): 2^26 entries name the pages of 256 GiB of guests in 256 MiB of memory. */
export const PLACES_MAX = 2 ** 26

/** Connections of one session (protocol): past 16, loss no longer limits a link that 16 cannot fill. */
export const CONNECTIONS_MAX = 16

/** A TLS handshake and hello that take longer are given up, so that slow strangers hold sockets for a bounded time. */
export const HELLO_TIMEOUT_MS = 10_000

/** Addresses of the peer's name that are tried: with the head start, all of them within the time for a hello. */
export const DIAL_ADDRESSES_MAX = 16

/** How long an address is tried alone before the next is tried beside it. Source: RFC 8305, 5 (250 ms). */
export const DIAL_HEAD_START_MS = 250

/** Payload bytes of a frame (protocol): with its head one TLS record, 13 us at 10 Gbit/s, so that urgent frames never wait long. */
export const FRAME_PAYLOAD_BYTES_MAX = 16384 - 16

/** JSON bytes of OPEN (protocol): the three fields at their longest, with room for fields of later versions. */
export const OPEN_BYTES_MAX = 4096

/** Flows open at once in a session (protocol): four migrations with 255 multifd channels each, main, preempt and a few more. */
export const FLOWS_MAX = 1280

/**
 * Flows open at once in all sessions that a process takes, shared by identity as memory is (fair-shares.ts):
 * each may bring CREDIT_INITIAL_BYTES that nobody is asked for, and NAMES_BYTES_MAX. One identity alone gets half, fifteen
 * migrations with 255 multifd channels; 17 identities one such migration each.
 */
export const FLOWS_OPEN_MAX = 8192

/**
 * Flows that have ended and whose END the client has not acknowledged, together with those that are open. A client that
 * reads what it is sent has twice FLOWS_MAX at most, when all end and as many open in one round trip.
 */
export const FLOWS_UNENDED_MAX = 4 * FLOWS_MAX

/**
 * OPENs that a server takes at once: all that may be open ... (some 50 us of CPU time each). As many again for further
 * channels of migrations that run: they were on their way when the last one began.
 */
export const OPENS_BURST = FLOWS_MAX

/** ... and then a second: each may dial QEMU. What comes above is refused; a client that goes on all the same ends its session. */
export const OPENS_PER_SECOND = 100

/** Raw bytes that a batch may expand to (protocol): 256 pages, what one round of encoding works on. */
export const BATCH_RAW_BYTES_MAX = 1 << 20

/** Bytes of a batch on the wire (protocol): raw bytes that do not shrink, plus what the columns' heads may add. */
export const BATCH_WIRE_BYTES_MAX = BATCH_RAW_BYTES_MAX + 65536

/** Batches of a session that are unpacked before their turn at most, the one that is expanded counted: one is read from while others are filled. */
export const UNPACK_SLOTS = 4

/** Bytes of their columns, in one of these: those of an honest batch are little more than what it gives. Others wait for their turn. */
export const UNPACK_COLUMNS_BYTES = 3 << 19

/** The same of all sessions of a holder together: so much is before a batch of others at most that has its turn. */
export const UNPACK_PER_HOLDER = 2 * UNPACK_SLOTS

// Work that one batch may cost: protocol.md, §4. A batch is paid for by its raw length, so nothing in it may cost more ----

/** Operations that a batch may hold whatever it gives (protocol) ... */
export const BATCH_OPERATIONS_FREE = 256

/**
 * ... and one more for so many of its raw bytes (protocol). A record has 9 bytes at least, and takes three operations at
 * most: BLOCK, SEEK and itself. DEFINE comes once a RAMBlock, whose first record has 11 bytes or more.
 */
export const RAW_BYTES_PER_OPERATION = 3

/** Raw bytes that a column may hold whatever its batch gives: for tables that a few bytes of the channel may need (protocol) ... */
export const COLUMN_BYTES_FREE = 1024

/** ... and so many more for each raw byte of the batch (protocol): what is OTHER, and names of RAMBlocks beside it. */
export const COLUMN_BYTES_PER_RAW_BYTE = 2

/** What a codec may add to a column that does not shrink (protocol): one byte in so many, and a head. */
export const PACKED_BYTES_PER_EXTRA_BYTE = 256
export const PACKED_BYTES_FREE = 64

/** Copies that a page of PATCH may be made of (protocol): copies of 8 bytes. Shorter ones save nothing. */
export const PATCH_COPIES_MAX = 512

/** zstd streams that one direction of a session may begin whatever passes (protocol): each costs 25 us and its memory ... */
export const FRESH_STREAMS_FREE = 64

/** ... and one more for so many raw bytes (protocol): a level that changes ten times a second at 1 MB/s, twice over. */
export const RAW_BYTES_PER_FRESH_STREAM = 16384

/** Bytes on the wire of batches that wait to be expanded, whatever they give (protocol): as many in flight at once ... */
export const BATCHES_WAITING_FREE_BYTES = 8 << 20

/** ... and so many more for each raw byte of theirs (protocol), which credit bounds. An honest batch has less than its own. */
export const BATCHES_WAITING_PER_RAW_BYTE = 3

/**
 * Of these what is more than the raw bytes is paid by the budget, beyond so many: credit has paid for the raw ones. An
 * honest batch is as long as what it gives, and some bytes.
 */
export const BATCHES_WAITING_UNPAID_BYTES = 1 << 20

/**
 * Names of RAMBlocks that one flow may make known, in bytes (protocol), each with NAME_EXTRA_BYTES more, which is what it
 * takes beside itself: 500 blocks of a guest with very many devices, and 40 MiB for all flows of a session.
 */
export const NAMES_BYTES_MAX = 32768
export const NAME_EXTRA_BYTES = 32

/** log2 of the zstd windows (protocol): of the columns that hold pages ... */
export const PAGES_WINDOW_LOG_MAX = 23

/** ... and of all others, which are small: with them eleven streams keep 20 MiB a session, not 80. */
export const OTHERS_WINDOW_LOG_MAX = 18

/**
 * WAN bytes (headers counted) that a sender keeps unacknowledged, and so what a receiver may have to keep while a frame
 * before them is missing (protocol). 64 MiB carry 10 Gbit/s over 50 ms.
 */
export const UNACKED_BYTES_MAX = 64 * 1024 * 1024

/** Frames that a sender keeps unacknowledged (protocol; a power of two): 64 MiB in frames of 1 KiB. */
export const UNACKED_FRAMES_MAX = 65536

/**
 * Of these a session may keep so many without asking the budget: 64 MiB in full frames. As many again may be under way that
 * are acknowledged and that their connection has not counted.
 */
export const SENT_FRAMES_FREE = 4096

/** What a frame that was sent costs beside the bytes it carries: an array, its buffer, a place in the ring, two records. */
export const SENT_FRAME_BYTES = 300

/**
 * Credit that each flow to us begins with, said in our hello: memory that a peer can take without having proven
 * anything, FLOWS_MAX times 64 KiB. Raised as soon as the flow is taken, out of the process's budget.
 */
export const CREDIT_INITIAL_BYTES = 64 * 1024

/**
 * What a hello may say of it (protocol): at least what a sender needs for the largest record and a batch around it, so
 * that it can always go on.
 */
export const CREDIT_INITIAL_BYTES_MIN = 32 * 1024

/** Credit of a flow that was taken, at least: one full batch, as far as the budget has it. */
export const CREDIT_TAKEN_BYTES = 1 << 20

/**
 * Credit of a migration's flow that was taken, for each millisecond of the round trip, and at most: from one batch it took five
 * round trips to grow to what known pages need (160 MB/s over 40 ms with queues), and most pages that go first are known.
 * On a LAN it is a batch as ever: what QEMU does not take as it comes would only wait, at the switchover too.
 */
export const CREDIT_TAKEN_BYTES_MS = 400_000
export const CREDIT_TAKEN_BYTES_MAX = 16 << 20

/**
 * And no more than this part of the memory that is left beside CREDIT_KEPT_BYTES: of an identity alone it is all 16 MiB, many
 * flows at once begin nearly alike, and what else sessions need memory for finds some.
 */
export const CREDIT_TAKEN_PART = 1 / 12

/**
 * Credit window that one flow may grow to. Raw bytes, which matching pages let flow far faster than the WAN does: 2 GB/s
 * over a round trip of 100 ms with some queue.
 */
export const CREDIT_FLOW_BYTES_MAX = 256 * 1024 * 1024

/**
 * Memory that all peers together can make this process hold beyond the free parts (CREDIT_INITIAL_BYTES, HELD_FREE_BYTES,
 * ANSWERS_FREE_BYTES): grown credit windows, frames ahead of a missing one, answers that nobody reads. One identity alone
 * gets half (fair-shares.ts), and so at least what one flow's window may grow to.
 */
export const MEMORY_BUDGET_BYTES = 512 * 1024 * 1024

/**
 * What windows of disks leave of an identity's part of it: they live for hours and never shrink, and memory comes behind them.
 * So does what a migration's flow has in advance.
 */
export const CREDIT_KEPT_BYTES = 64 * 1024 * 1024

/** Frames ahead of a missing one that a session may hold without asking the budget: connections of one session seldom differ by more. */
export const HELD_FREE_BYTES = 1 << 20

/** What a held frame costs beside its bytes: an array, its buffer, a place in the ring. */
export const HELD_FRAME_BYTES = 256

/** Answers of QEMU (DATA) that a session may keep, queued or unacknowledged, without asking the budget. */
export const ANSWERS_FREE_BYTES = 1 << 20

/** Smallest in-flight window of a connection: two frames (26 ms at 10 Mbit/s), so that no measurement stops the link. */
export const WINDOW_BYTES_MIN = 32 * 1024

/**
 * PADs by which a source finds out, before a migration, what the link takes, at most: they end where the rate has not grown
 * for three round trips. At 20 Mbit/s, 60 ms that is after 1.7 MB, at 1 Gbit/s, 2 ms after 3.7, at 100 Mbit/s, 40 ms after
 * 6.3; what longer ways take is not known by then, but their windows are open. Without them the first third of a second of
 * each pair's first migration is the link's (docs/adr/0029-warm-links.md).
 */
export const WARM_UP_BYTES = 8 << 20

/** Connections and sessions to a peer that come and go cost no more of them than once in this time: 1.1 Mbit/s. */
export const WARM_UP_AGAIN_MS = 60_000

/** PING goes out this often (protocol): with the dead time it finds a half-open link within seconds. */
export const PING_INTERVAL_MS = 1000

/** A connection on which nothing arrived for so long is dead (protocol): four lost PINGs and their answers. */
export const CONNECTION_DEAD_MS = 5000

/**
 * A connection whose frames stop being counted for so long is given up although it lives: the slowest link that carries
 * a frame in this time has 7 kbit/s.
 */
export const CONNECTION_STUCK_MS = 20_000

/**
 * How long a session without a connection is kept, unless configured (protocol): a rerouted link comes back by then. And
 * how long its connections may stand without anything of what was sent being acknowledged.
 */
export const PATIENCE_MS = 120_000

/** How long a proxy rehearses at its start, at most: on a core of its own it takes 0.7 s, on a busy host several times that. */
export const REHEARSAL_MS = 2000
/** The most that may be asked for: systemd waits 90 s for a start. */
export const REHEARSAL_MS_MAX = 60_000
/** What is left of a rehearsal behind its time (closing takes 5 s at most) is left alone after so much more. */
export const REHEARSAL_GRACE_MS = 8000

/** ACK goes out at the latest after so many bytes of frames ... (4 full frames: few enough to keep the window moving). */
export const ACK_BYTES = 65536

/** ... or so long after the first of them: well below any queue target ... */
export const ACK_DELAY_MS = 2

/** ... on a long way an eighth of its smallest round trip, but at most this. */
export const ACK_DELAY_MS_MAX = 10

/** Time that bytes may wait in the link beyond its round trip, unless configured: they add to the guest's downtime. */
export const QUEUE_TARGET_MS = 50

/** TLS records that one connection may carry each way under one AES-GCM key: 2^24.5 (RFC 8446 §5.5). Before that it is replaced. */
export const TLS_RECORDS_MAX = Math.floor(2 ** 24.5)

// Who connects to the destination proxy ---------------------------------------------------------------------------------

/**
 * Connections that have said nothing yet, from addresses that no peer came from; as many more whose first bytes wait for
 * their turn. 10 KiB each. Addresses share them (IPv6 by /64): whoever floods us drives out itself.
 */
export const STRANGERS_MAX = 512

/** Their handshakes under way: 100 KiB each. */
export const STRANGER_HANDSHAKES_MAX = 128

/** Their handshakes in a second: with a millisecond or two each, a tenth of one core. */
export const STRANGER_HANDSHAKES_PER_SECOND = 60

/** The same three for addresses from which a peer proved itself lately: places that strangers cannot take. */
export const RETURNERS_MAX = 256
export const RETURNER_HANDSHAKES_MAX = 128
/** 17 sites with 16 connections each are back within three seconds after an outage. */
export const RETURNER_HANDSHAKES_PER_SECOND = 100

/** Identities whose addresses are remembered, and addresses of each: a peer in the middle of a move, or with many uplinks. */
export const KNOWN_IDENTITIES_MAX = 1024
export const KNOWN_ADDRESSES_PER_IDENTITY_MAX = 16

/** Connections that TLS has let in and whose hello is missing; identities share them. */
export const GREETERS_MAX = 256

/**
 * Sessions at once, unless configured, those that are being opened or are ending counted. An identity may have as many as
 * are still free: one alone 32, so that 17 sources behind one key are served. What a session costs until a migration
 * comes stands in docs/security.md.
 */
export const SESSIONS_MAX = 64

/** What --sessions-max may be set to: a heartbeat of each a second is still little. */
export const SESSIONS_CEILING = 4096

/** A session without a flow for so long makes room where somebody else needs its place: its peer opens another when it needs one. */
export const SESSION_IDLE_MS = 30_000

/**
 * Log lines that one peer may cause in a minute, outcomes and counts of lines left out included. An ordinary migration
 * has four; at 200 bytes a line a hostile one fills 29 MB a day. QEMUs and strangers have what is left without outcomes.
 */
export const PEER_LINES_PER_MINUTE = 100

/** Those of them that are kept for how migrations ended, which nothing else can push out. */
export const PEER_OUTCOMES_PER_MINUTE = 40

/** The same of this site's own QEMUs, beside their other lines: an evacuation is some hundred guests in a minute. */
export const QEMU_OUTCOMES_PER_MINUTE = 500

/** How long one that was refused may take to read why. */
export const REFUSAL_LINGER_MS = 1000

/** After the last byte of a session the peer has this long to read it and close; then the socket goes. */
export const LINGER_MS = 2000

/**
 * Pieces (DATA frames and batches) of all sessions that wait for the destination QEMUs to take them, shared by identity as
 * memory is (fair-shares.ts): one alone gets half. Each costs some 300 bytes beside its own, so that credit,
 * which counts bytes, alone would let pieces of one byte take 300 times as much. QEMU writes 32 KiB at a time, and what is
 * flushed in smaller pieces comes once a millisecond at most.
 */
export const PIECES_MAX = 2 * 65536

/**
 * How long a QEMU that has closed its direction, and whose flow has ended, may take to read what is owed to it: nobody's
 * credit pays for that any more. QEMU itself closes both directions at once.
 */
export const OWED_MS = 60_000

// The source QEMU's connections -------------------------------------------------------------------------------------------

/** Connections of one migration: 255 multifd channels, main, a preempt channel, and one more that may be QEMU's. */
export const CHANNELS_A_MIGRATION = 258

/**
 * Connections of disks in one session, with flows beside the channels: QEMU opens one a disk, nbdcopy four, qemu-img up to
 * sixteen. What is left of FLOWS_MAX has room for four migrations, which is what it was made for.
 */
export const DISK_CONNECTIONS_MAX = 128

/**
 * Connections of disks that a source proxy opens at once, and then a second. It takes no byte to open one, so a client that
 * comes over and over would use up what the other side takes of all (OPENS_PER_SECOND), and end the session with it.
 */
export const DISK_OPENS_BURST = 2 * DISK_CONNECTIONS_MAX
export const DISK_OPENS_PER_SECOND = OPENS_PER_SECOND / 2

/** Reasons for which parts of one migration or disk transfer were said to be relayed raw: each once, and then no more. */
export const RAW_REASONS_TOLD_MAX = 64

/** Names of exports that are told of one disk transfer, and characters of each: who connects may ask for any. */
export const EXPORTS_TOLD_MAX = 16
export const EXPORT_TOLD_LENGTH_MAX = 255

/**
 * Connections of QEMUs at once that a source proxy holds for one peer, those that wait for their main or for a session
 * counted: as many again as flows may be open. Each costs some kilobytes until its flow is opened.
 */
export const CONNECTIONS_HELD_MAX = 2 * FLOWS_MAX

/**
 * Sessions that a source proxy has left to their disks, while the next takes migrations. Each has a pool at both sides for as
 * long as a mirror lives; where there are so many, what comes waits for the end of one, as for that of a migration.
 */
export const SESSIONS_LEFT_MAX = 3

/**
 * Memory of a session's channels, in units of 64 KiB: one for each flow that may be open, and for 128 of them eight more,
 * with which they have whole batches. Taken as channels come.
 */
export const CHANNEL_UNITS = FLOWS_MAX + 128 * 8

/** Of those for whole batches, as many as disks leave to migrations: 128 disks that were there first would have them all. */
export const CHANNEL_UNITS_KEPT = 64 * 8

/**
 * Bytes of a connection that are kept until the other proxy has taken its flow, and so the most that QEMU gets rid of
 * in the one round trip that a direct connection would have taken to stand.
 */
export const KEPT_BYTES_MAX = 512 * 1024

/**
 * Bytes of a connection that are read ahead while its flow cannot take them: all that QEMU says on a channel before its
 * main goes on. An end behind them is seen, so that a channel that QEMU has closed does not wait for the next migration.
 * An end behind more than these (and 4 KiB that the socket holds) is not: such a channel waits for MAIN_AWAITED_MS.
 */
export const AHEAD_BYTES = 4096

// QEMU's streams: the wire allows more than any QEMU sends; a parser that met more has lost its place, or is being fed -----

/** RAMBlocks of one guest. 256 DIMMs, a few ROMs a device: some hundreds. Each costs the codec a table. */
export const RAM_BLOCKS_MAX = 4096

/** SECTION_STARTs of one stream: iterable state only, so RAM, disks and a section a passed-through device. */
export const SECTIONS_MAX = 1024

/**
 * Bytes of an unknown section in which its end is looked for. A device's state between RAM's is some MB at a time; looking
 * costs 2 ns a byte, which nothing that is relayed raw for good should cost for ever.
 */
export const SECTION_SEARCH_BYTES_MAX = 256 << 20

/**
 * Ways back from unknown sections that turn out to be none. By chance there is not one: a footer, a section of ram and
 * the head of a record are 18 bytes. A guest that has such bytes in its devices' state loses savings, not bytes.
 */
export const WRONG_WAYS_MAX = 16

/** Bytes of a machine type name; QEMU's longest has some 30. It is kept for messages. */
export const MACHINE_TYPE_LENGTH_MAX = 255

/** Entries of the capabilities subsection; QEMU 10 knows 24 capabilities and lists 2 of them. */
export const CAPABILITIES_MAX = 64

// NBD: the wire allows more than any client or server sends; what meets more is relayed raw -------------------------------

/**
 * Requests of one connection that are not answered. QEMU's mirror has 16 under way, nbdcopy 64, Linux 128 a connection; each
 * costs 38 bytes in a table that is at most half full.
 */
export const NBD_REQUESTS_MAX = 4096

/** Bytes of an export's or a metadata context's name: the protocol's own limit of strings. They are kept. */
export const NBD_NAME_BYTES_MAX = 4096

/**
 * Bytes of the data of an option, and of a reply to one. What is not kept is passed, so this is no memory; but the longest
 * that anybody sends has two strings, and a length beyond tells that the place is lost.
 */
export const NBD_OPTION_BYTES_MAX = 65536

/**
 * Pages of ring that READ replies of a session go through (protocol), on top of the session's own ring: 16 MiB at both
 * sides, of which memory is what has passed. What it is for: docs/adr/0021-disk-replies.md.
 */
export const REPLIES_RING_PAGES_MAX = 4096

/** Entries of the place table of that direction (protocol). */
export const REPLIES_PLACES_MAX = 65536

/** Connections of a session whose answers are encoded at once; those of others go as they are. */
export const REPLIES_CHANNELS_MAX = 64

/**
 * What encoding the answers of a session may take of a destination's memory, which MEMORY_BUDGET_BYTES pays: ring, slots of
 * its connections, work areas, what finds pages. A session for which there is none relays them as they are.
 */
export const REPLIES_MEMORY_BYTES = 48 << 20

/** Metadata contexts that a client may have chosen: QEMU offers two and one for each bitmap. */
export const NBD_CONTEXTS_MAX = 64

// Writes of disks that are answered early (docs/adr/0020-early-answers.md) ------------------------------------------------

/**
 * Bytes of one connection that its journal holds before they are on their way, requests counted: what a burst of a guest
 * brings while the link carries what came before it. What fills the link lies in the session, not here.
 */
export const JOURNAL_BYTES_MAX = 16 << 20

/** Of these so many without asking the budget: one read, so that a connection always goes on. */
export const JOURNAL_FREE_BYTES = 256 * 1024

/** What a request that is not settled costs beside its payload: an object, its head, places in two tables. */
export const JOURNAL_REQUEST_BYTES = 512

/**
 * Writes that a request waits for one by one, because they touch its range: where there are more it waits for all before it. A
 * client may have thousands under way that all touch each other.
 */
export const JOURNAL_WAITS_MAX = 64

/**
 * Nothing more is taken from a client while a write that was answered early has been on its way for so long: what the
 * journal holds is bounded in time too, because it is downtime at a switchover. On a link with a longer round trip a client
 * has so much time of every round trip.
 */
export const JOURNAL_AGE_MS_MAX = 1000

/** Bytes of answers of our own that a client has not read. A request has 28 bytes, its answer at most 38. */
export const JOURNAL_ANSWERS_BYTES_MAX = 65536

// Sets that stay on the disk ---------------------------------------------------------------------------------------------

/** Pages of them that a server may have asked for and not been sent (protocol): all of one batch. */
export const WANTED_PAGES_MAX = 256

/** Pages of them that one session may have: 128 GiB, for which a source keeps up to 870 MB in memory, a destination 540. */
export const COLD_PAGES_MAX = 2 ** 25

/**
 * Blocks of disks that a session keeps on this side's disk at most: 64 GiB, for which a source has up to 420 MB in memory, a
 * destination 290 (docs/adr/0025-kept-blocks.md).
 */
export const KEPT_BLOCKS_MAX = 2 ** 24

/**
 * Blocks that may be kept behind a batch before the other side has expanded it: as many as credit of one identity lets be under
 * way, 256 MiB (MEMORY_BUDGET_BYTES). It may still ask for what that batch names, so so many places are not written over.
 */
export const KEPT_UNDER_WAY_BLOCKS = MEMORY_BUDGET_BYTES / 2 / 4096

/** Fewer are not kept: half of them at least can be named. 512 MiB. */
export const KEPT_BLOCKS_MIN = 2 * KEPT_UNDER_WAY_BLOCKS

/** What of all sessions' may wait for the disk, 64 MiB: what comes beyond it is not kept. */
export const KEPT_WAITING_PAGES_MAX = 16_384

/** Bytes of one read: most matches come in runs, and 64 KiB take a disk hardly longer than 4. */
export const COLD_READ_BYTES_MAX = 65536

/** Reads at once, over all sessions: three of the four threads that the system's calls are made in. */
export const COLD_READS_MAX = 3

/** Threads that read files that are not encrypted, over all sessions: a batch at a time each, 4 MiB of memory. */
export const COLD_THREADS_MAX = 2

/** Threads that digest pages beside the one that encodes, over all sessions: with two it does a third of them. */
export const COLD_DIGEST_THREADS_MAX = 2

/** What a proxy that has stopped has to end by itself: reads that a disk answers are over by then, others keep it for good. */
export const EXIT_MS_MAX = 2000

/**
 * How long a session's opening waits for a side's disk, from the listing of its store to its last set: half of what the other
 * side waits for our hello. While something is late nobody waits for it again. What is read later is used in the next session.
 */
export const SETS_WAIT_MS = 5000

/** How long the reads of a batch are waited for where nobody else has the pages: a busy disk takes 20 ms a read. */
export const COLD_READ_MS_MAX = 5000

/** The same where the other side has them, which gives them in a round trip. */
export const COLD_PATIENCE_MS = 250

/** Batches in a row for which a set's disk gave nothing in time: then it is not read any more in this session. */
export const COLD_LATE_MAX = 8

// Remote stores ----------------------------------------------------------------------------------------------------------

/** Bytes of a channel's document: 512 sets take 55 KiB, and an older proxy must be able to skip what a later one adds. */
export const CHANNEL_BYTES_MAX = 256 << 10

/** Sets in force in a channel: as many as two hellos' lists, in memory and on the disk, hold together. */
export const CHANNEL_SETS_MAX = 512

/** Signatures of a channel's document: a key, its successor, and others' whom this host does not ask. */
export const CHANNEL_SIGNATURES_MAX = 16

/** Bytes of an answer of S3 that is no object: a listing has 1,000 names of at most 1 KiB, each with some tags. */
export const STORE_ANSWER_BYTES_MAX = 4 << 20

/** Listings of one folder of S3, a thousand names each: a million sets. */
export const STORE_LISTINGS_MAX = 1000

/** Bytes of one part of an upload, in memory as it is signed: S3 takes 10,000 parts, and the largest set has 4,200. */
export const STORE_PART_BYTES = 16 << 20

/** An upload may take a second for so many bytes, so that a stall ends: ten minutes a part. */
export const STORE_UPLOAD_BYTES_A_SECOND = 28 << 10

/** Redirects that one request follows, within its host: a web server needs one for a moved folder. */
export const STORE_REDIRECTS_MAX = 3

/** How long a remote store may take from the request to the head of its answer, connecting included. */
export const STORE_ANSWER_MS = 30_000

/** A transfer has stalled where so long ... */
export const STORE_STALL_MS = 30_000

/** ... brings fewer bytes than this: at such a rate a set of 1 GB would take three weeks. */
export const STORE_STALL_BYTES = 16 << 10

/** Attempts in a row that bring nothing, after which a fetch gives a store up. */
export const FETCH_ATTEMPTS_MAX = 5

/** Bytes of a disk that no fetched set takes: logs and what proxies learn need some, too. */
export const STORE_FREE_BYTES_MIN = 64 << 20

/** How often a host asks for a channel's document: a thousand hosts are 17 questions a second, answered without a body. */
export const CHANNEL_POLL_MS = 60_000

/** The longest that failures in a row make of it. */
export const CHANNEL_POLL_MS_MAX = 15 * 60_000

/**
 * How often a host asks who signed a set in force that nobody has signed: a thousand hosts with twenty such sets are 6
 * questions a second. One that uses no sets without a signature asks with each poll.
 */
export const SIGNATURE_POLL_MS = 60 * 60_000

/** Who fetches touches its lock this often ... */
export const FETCH_LOCK_TOUCH_MS = 10_000

/** ... and one untouched for so long belongs to nobody: several touches missed, on a busy machine too. */
export const FETCH_LOCK_IDLE_MS = 60_000

// What proxies learn ---------------------------------------------------------------------------------------------------

/**
 * Pages of one session that wait for the disk of the store, in bytes; they lie in memory twice, as they are and encrypted.
 * Above it learning ends until the next session, because the migration must not wait.
 */
export const LEARN_WAITING_BYTES_MAX = 64 << 20

/**
 * Memory for learning in all sessions of a process, shared by identity (fair-shares.ts): the counts, and those pages. An
 * identity alone gets half, nine sessions of 28 MiB or two beside a slow disk. A session that finds none stops learning.
 */
export const LEARN_MEMORY_BYTES = 512 << 20

/** Bytes of a VM's name in page counts: the longest path with a host before it, and room. */
export const VM_NAME_BYTES_MAX = 8192

// The control socket, the port of metrics, and the dashboard -----------------------------------------------------------

/** Connections at once; another displaces one that asks nothing just now, or the oldest. Those who ask are a handful: people, a monitor, a page. */
export const CONTROL_CLIENTS_MAX = 32

/** From connect to a request, and from that to the last byte of the answer, which takes milliseconds. */
export const CONTROL_CLIENT_MS = 10_000

/** How long a connection is kept on which something was answered: Prometheus asks over the same one each minute, or sooner. */
export const CONTROL_IDLE_MS = 90_000

/** Bytes of a request's head, and characters of its body: a browser's head has 1 KiB, a body a name and a rate. */
export const CONTROL_HEAD_BYTES_MAX = 8192
export const CONTROL_BODY_BYTES_MAX = 4096

/** Bytes of an answer that a command takes: 4,096 sessions with a kilobyte each, and their migrations. */
export const CONTROL_ANSWER_BYTES_MAX = 64 << 20

/** Migrations that ended and are told of: the last weeks of most sites, and a file that is written in a millisecond ... */
export const HISTORY_MIGRATIONS_MAX = 1000

/** ... of so many bytes at most, whatever names are in it: 500 each, 5 KiB where every character has to be escaped. */
export const HISTORY_BYTES_MAX = 8 << 20

/** Sets of which it is noted what they brought: a store has tens, and some hundred have gone before ... */
export const SET_USES_MAX = 4096

/** ... in a file of so many bytes at most: 280 each. */
export const SET_USES_BYTES_MAX = 2 << 20

/** Who may have signed a set, and bytes of what they wrote. */
export const SET_SIGNATURES_MAX = 16
export const SET_SIGNATURE_BYTES_MAX = 4096

/** Sets that the history names of a migration: those that brought most. */
export const HISTORY_SETS_MAX = 8

/** Peers that have figures of their own: whoever may connect as somebody may do so under many names. */
export const METRICS_PEERS_MAX = 256

/** Template sets that have figures of their own: two series each. Sets that proxies learn come and go. */
export const METRICS_SETS_MAX = 32

/** A set that brought nothing for so long gives its figures' place to another. */
export const METRICS_SET_IDLE_MS = 86_400_000

/** One rendering of metrics answers all who ask within so long. Prometheus asks every few seconds; the rates that it makes of them are off by this at most. */
export const METRICS_FRESH_MS = 1000

// The program of --hook ------------------------------------------------------------------------------------------------

/** How long it may run: it writes a line somewhere, or asks a server. The end of a proxy waits as long for the last one. */
export const HOOK_MS_MAX = 10_000

/** Runs at once: of a storm of migrations a few, so that it takes no core from them ... */
export const HOOKS_RUNNING_MAX = 4

/** ... and runs that wait, those that run counted: the starts and ends of so many that begin or break off at once. */
export const HOOKS_WAITING_MAX = 256

// Caps -----------------------------------------------------------------------------------------------------------------

/** Entries of a schedule: each hour of a week has fewer, and nobody reads more. */
export const SCHEDULE_ENTRIES_MAX = 256

/** Weights are whole numbers to this: of a hundredth nobody could see a tenth. */
export const WEIGHT_MAX = 100
