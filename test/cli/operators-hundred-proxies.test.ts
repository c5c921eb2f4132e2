import { operatorsHundred } from './operators-hundred.ts'

operatorsHundred('proxies')
