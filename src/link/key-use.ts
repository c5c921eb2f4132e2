/**
 * How much a TLS connection's keys have been used. AES-GCM may encrypt 2^24.5 records under one key (RFC 8446 §5.5), a
 * quarter of a TiB in full ones; OpenSSL neither counts nor updates the key by itself (openssl issue 23566), and Node
 * cannot ask it to. So connections are replaced in time, which sessions outlive anyway.
 */
import { TLS_RECORDS_MAX } from '../limits.ts'

/** Bytes of a full record: SSL_write cuts what it is given. */
const RECORD_BYTES = 16384
/** Part of the records after which a fresh connection is dialled: there is time for many attempts. */
const WORN_SHARE = 0.7

export class KeyUse {
  private readonly max: number
  private sentRecords = 0
  private receivedRecords = 0

  constructor(max = TLS_RECORDS_MAX) {
    this.max = max
  }

  /** So many bytes went out in one write. */
  sent(bytes: number): void {
    this.sentRecords += Math.ceil(bytes / RECORD_BYTES)
  }

  /** A piece came in: OpenSSL gives at most one record at a time. */
  received(): void {
    this.receivedRecords++
  }

  /** A fresh connection should take its place. */
  get isWorn(): boolean {
    return Math.max(this.sentRecords, this.receivedRecords) >= this.max * WORN_SHARE
  }

  /** Nothing more may be encrypted or believed. */
  get isSpent(): boolean {
    return Math.max(this.sentRecords, this.receivedRecords) >= this.max
  }
}
